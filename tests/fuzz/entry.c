/*
** entry.c: libFuzzer's entry points for the target that FUZZ_TARGET names.
*/
#include "fuzz.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc;
  (void)argv;
  if (JOIN(fuzz_, FUZZ_TARGET).setup) JOIN(fuzz_, FUZZ_TARGET).setup();
  return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  JOIN(fuzz_, FUZZ_TARGET).run(data, size);
  return 0;
}
