# Makefile: builds, tests and installs sqlite-tde. `make help` lists the targets.
#
# Variables: CC, BUILD (output folder), SAN=address|thread|coverage (that build,
# in a folder of its own), OPT, EXTRA_CFLAGS, EXTRA_LDFLAGS, PREFIX, DESTDIR,
# V=1 (show commands). What must hold: every output lies under BUILD, a change
# of a header or of the flags rebuilds what depends on it, and any -j works.

ifeq ($(origin CC),default)
CC := gcc
endif
ifdef SAN
BUILD ?= build/$(SAN)
else
BUILD ?= build
endif
ifneq ($(V),1)
Q := @
endif

CSTD := -std=gnu11
WARN := -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wundef
OPT ?= -O2 -g
HARDEN := -fstack-protector-strong -D_FORTIFY_SOURCE=2
SANFLAGS_address := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SANFLAGS_thread := -fsanitize=thread -fno-omit-frame-pointer
SANFLAGS_coverage := --coverage -fprofile-update=atomic -O0
ifdef SAN
SANFLAGS := $(SANFLAGS_$(SAN))
ifeq ($(SANFLAGS),)
$(error SAN must be address, thread or coverage, not '$(SAN)')
endif
# _FORTIFY_SOURCE hides from the sanitizers the calls that they look at.
HARDEN := -fstack-protector-strong
endif
CFLAGS += $(CSTD) $(WARN) $(OPT) $(HARDEN) $(SANFLAGS) -fPIC -fvisibility=hidden -D_GNU_SOURCE $(EXTRA_CFLAGS)
LDFLAGS += $(SANFLAGS) -Wl,-z,relro,-z,now $(EXTRA_LDFLAGS)
LIBS := -lcrypto -lcurl -ljansson -lpthread

MODULE_SRC := $(sort $(wildcard ext/base/*.c vfs/*.c keyprovider/*.c sql/*.c ext/*.c))
OBJ := $(MODULE_SRC:%.c=$(BUILD)/obj/%.o)
# The same sources for static linking: SQLITE_CORE calls the library directly.
STATIC_OBJ := $(MODULE_SRC:%.c=$(BUILD)/static/%.o)

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.PHONY: all lib
all: $(BUILD)/tde.so ## build the extension, build/tde.so

# Written anew only when the compiler, the flags or the list of sources differ.
FLAGS_NOW := $(CC) $(CFLAGS) $(LDFLAGS) $(LIBS) $(MODULE_SRC)
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(FLAGS_NOW)' | cmp -s - $@ || echo '$(FLAGS_NOW)' > $@
.PHONY: FORCE
FORCE:

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/static/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -DSQLITE_CORE=1 -MMD -MP -c $< -o $@

# nodelete: a load that fails half-way is undone by dlclose, with a VFS, threads and exit handlers
# in place. Bsymbolic: SQLite loads into the global scope, where another copy's entry points, for
# another SQLite of the process, may stand first.
$(BUILD)/tde.so: $(OBJ) ext/tde.map $(BUILD)/flags
	$(Q)$(CC) -shared $(LDFLAGS) -Wl,--version-script=ext/tde.map -Wl,-z,nodelete \
	  -Wl,-Bsymbolic-functions -o $@ $(OBJ) $(LIBS)
	@echo "built $@"

# One object, whose hidden names are local: only the public API can meet the
# names of the program that it is linked into.
lib: $(BUILD)/libtde.a ## build the library for static linking, build/libtde.a
$(BUILD)/libtde.a: $(STATIC_OBJ) $(BUILD)/flags
	$(Q)$(CC) -r -nostdlib -o $(BUILD)/libtde.o $(STATIC_OBJ)
	$(Q)objcopy --localize-hidden $(BUILD)/libtde.o
	$(Q)rm -f $@ && ar rcs $@ $(BUILD)/libtde.o && rm -f $(BUILD)/libtde.o
	@echo "built $@"

-include $(OBJ:.o=.d) $(STATIC_OBJ:.o=.d)

include tests/tests.mk

# ---- what the machine needs ----
# PACKAGES picks the sections of packages.txt: demo, check, all or bench.
.PHONY: deps
PACKAGES ?= all
deps: ## install the packages of packages.txt that are missing
	$(Q)sh tests/deps.sh $(PACKAGES)

# ---- install ----
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DOCDIR ?= $(PREFIX)/share/doc/sqlite3-tde
MODULEDIR ?= $(LIBDIR)/sqlite3-tde
VERSION = $(shell sed -n 's/^.define TDE_VERSION "\(.*\)"$$/\1/p' ext/base/limits.h)
# The documents, in their folders: they link to each other.
DOCS := README.md SECURITY.md CHANGELOG.md LICENSE sql/SQL.md keyprovider/PROVIDERS.md vfs/FORMAT.md tests/README.md \
        tests/decoder/decode.py \
        tests/crash/README.md tests/fuzz/README.md $(addprefix tests/bench/,README.md ratios.svg size.svg)
INSTALLED := $(MODULEDIR)/tde.so $(LIBDIR)/libtde.a $(LIBDIR)/pkgconfig/sqlite3-tde.pc $(INCLUDEDIR)/tde.h \
             $(addprefix $(DOCDIR)/,$(DOCS))
# Folders of this name are nobody else's; others stay.
OWN_DIRS := $(filter %/sqlite3-tde,$(MODULEDIR) $(DOCDIR))

.PHONY: install install-docs install-pc uninstall
install: all lib install-docs install-pc ## install under PREFIX (/usr/local); DESTDIR for packaging
	$(Q)install -d $(addprefix $(DESTDIR),$(sort $(dir $(INSTALLED))))
	$(Q)install -m 644 $(BUILD)/tde.so $(DESTDIR)$(MODULEDIR)/tde.so
	$(Q)install -m 644 $(BUILD)/libtde.a $(DESTDIR)$(LIBDIR)/libtde.a
	$(Q)install -m 644 ext/tde.h $(DESTDIR)$(INCLUDEDIR)/tde.h
	@echo "installed: load it with  .load $(MODULEDIR)/tde"

# With the variables by which others move what was installed, and find the extension.
PC_LINES = 'prefix=$(PREFIX)' 'libdir=$(LIBDIR:$(PREFIX)/%=$${prefix}/%)' \
           'includedir=$(INCLUDEDIR:$(PREFIX)/%=$${prefix}/%)' 'extension=$(MODULEDIR:$(PREFIX)/%=$${prefix}/%)/tde.so' \
           '' 'Name: sqlite3-tde' 'Description: transparent data encryption for SQLite' 'Version: $(VERSION)' \
           'Requires: sqlite3' 'Libs: -L$${libdir} -ltde $(LIBS)' 'Cflags: -I$${includedir}'
install-pc:
	$(Q)install -d $(DESTDIR)$(LIBDIR)/pkgconfig
	$(Q)printf '%s\n' $(PC_LINES) > $(DESTDIR)$(LIBDIR)/pkgconfig/sqlite3-tde.pc

install-docs:
	$(Q)for f in $(DOCS); do install -D -m 644 $$f $(DESTDIR)$(DOCDIR)/$$f || exit 1; done

uninstall: ## remove what install put there
	rm -f $(addprefix $(DESTDIR),$(INSTALLED))
	-$(Q)for d in $(addprefix $(DESTDIR),$(OWN_DIRS)); do \
	  test ! -d $$d || find $$d -depth -type d -empty -delete; done

.PHONY: clean help
clean: ## remove everything built
	rm -rf $(BUILD)

help: ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  %-20s %s\n", $$1, $$2}'
