/*
** gcm_ipsec.c: AES-256-GCM from Intel's IPsec multi-buffer library.
**
** Its vector code (VAES, AVX-512 where the CPU has them; AMD too) seals a page
** in a third of the time of OpenSSL 3.0. The library is loaded at run time
** when it is installed: nothing depends on it, and the bytes on disk are the
** same. Built where its header is found (libipsec-mb-dev).
**
** What must hold: the manager is set up once, then only read: the one-shot
** calls below keep all state in the caller's context, so threads share it.
*/
#include "gcm.h"

#if defined(__x86_64__) && defined(__has_include)
#if __has_include(<intel-ipsec-mb.h>)
#define HAVE_IPSEC_MB 1
#endif
#endif

#ifdef HAVE_IPSEC_MB

#include <dlfcn.h>
#include <intel-ipsec-mb.h>
#include <stdio.h>
#include <stdlib.h>

#include "secret.h"

/* The library of the ABI that the header above describes: its major version, as IMB_MGR is laid
** out anew with each (Debian 12's libipsec-mb1, Debian 13's libipsec-mb2). */
#if IMB_VERSION_NUM >= IMB_VERSION(2, 0, 0)
#define LIBRARY "libIPSec_MB.so.2"
#else
#define LIBRARY "libIPSec_MB.so.1"
#define HAS_OLD_ARCHS 1
#endif

static IMB_MGR *manager;

/* The instruction set that the library chose, or NULL where it would emulate AES: OpenSSL is
** better then. (Version 2 has no such code any more, nor any for AVX alone.) */
static const char *arch_name(IMB_ARCH arch) {
  switch (arch) {
    case IMB_ARCH_AVX512: return "AVX-512";
    case IMB_ARCH_AVX2: return "AVX2";
    case IMB_ARCH_SSE: return "SSE";
#ifdef HAS_OLD_ARCHS
    case IMB_ARCH_AVX: return "AVX";
#endif
    default: return NULL;
  }
}

static tde_class ipsec_init(char *text, size_t ntext) {
  IMB_MGR *(*alloc_manager)(uint64_t);
  void (*init_auto)(IMB_MGR *, IMB_ARCH *);
  const char *(*version)(void);
  IMB_ARCH arch = IMB_ARCH_NONE;
  void *lib;

  if (!manager) {
    lib = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!lib) return TDE_UNSUPPORTED;
    /* POSIX: a dlsym result is copied into a function pointer this way. */
    *(void **)&alloc_manager = dlsym(lib, "alloc_mb_mgr");
    *(void **)&init_auto = dlsym(lib, "init_mb_mgr_auto");
    *(void **)&version = dlsym(lib, "imb_get_version_str");
    if (!alloc_manager || !init_auto || !version) return TDE_UNSUPPORTED;
    manager = alloc_manager(0);
    if (!manager) return TDE_NOMEM;
    init_auto(manager, &arch);
    if (!arch_name(arch) || !(manager->features & IMB_FEATURE_AESNI)) {
      manager = NULL; /* kept allocated: its library stays loaded */
      return TDE_UNSUPPORTED;
    }
    (void)snprintf(text, ntext, "IPsec-mb %s (%s)", version(), arch_name(arch));
  }
  return TDE_OK;
}

static void *ipsec_key_new(void) {
  size_t n = (sizeof(struct gcm_key_data) + 63) / 64 * 64;
  void *key = NULL;

  if (tde_test_alloc_hook && tde_test_alloc_hook(n)) return NULL;
  /* The vector code loads the expanded keys from 64-byte boundaries. */
  return posix_memalign(&key, 64, n) == 0 ? key : NULL;
}

static tde_class ipsec_key_set(void *handle, const uint8_t key[TDE_KEY_BYTES]) {
  IMB_AES256_GCM_PRE(manager, key, (struct gcm_key_data *)handle);
  return TDE_OK;
}

static void ipsec_key_free(void *handle) {
  if (!handle) return;
  tde_wipe(handle, sizeof(struct gcm_key_data));
  free(handle);
}

static tde_class ipsec_seal(void *handle, const uint8_t iv[TDE_GCM_IV_BYTES], const uint8_t *aad,
                            size_t naad, const uint8_t *pt, size_t n, uint8_t *ct,
                            uint8_t tag[TDE_TAG_BYTES]) {
  struct gcm_context_data c;

  IMB_AES256_GCM_ENC(manager, (struct gcm_key_data *)handle, &c, ct, pt, n, iv, aad, naad, tag,
                     TDE_TAG_BYTES);
  return TDE_OK;
}

static tde_class ipsec_open(void *handle, const uint8_t iv[TDE_GCM_IV_BYTES], const uint8_t *aad,
                            size_t naad, const uint8_t *ct, size_t n,
                            const uint8_t tag[TDE_TAG_BYTES], uint8_t *pt) {
  struct gcm_context_data c;
  uint8_t computed[TDE_TAG_BYTES];

  IMB_AES256_GCM_DEC(manager, (struct gcm_key_data *)handle, &c, pt, ct, n, iv, aad, naad, computed,
                     TDE_TAG_BYTES);
  return tde_equal(computed, tag, TDE_TAG_BYTES) ? TDE_OK : TDE_TAMPERED;
}

#else

static tde_class ipsec_init(char *text, size_t ntext) {
  (void)text;
  (void)ntext;
  return TDE_UNSUPPORTED; /* built without the library's header: never called further */
}
#define ipsec_key_new NULL
#define ipsec_key_set NULL
#define ipsec_key_free NULL
#define ipsec_seal NULL
#define ipsec_open NULL

#endif

const tde_gcm tde_gcm_ipsec = {"ipsec-mb",     ipsec_init, ipsec_key_new, ipsec_key_set,
                               ipsec_key_free, ipsec_seal, ipsec_open};
