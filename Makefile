# sqlite-tde. `make help` tells each target in a line.
#
# Variables: CC, BUILD (output folder), SAN (address|thread: sanitizer build),
# V=1 (show commands). Packages come from packages.txt; `make deps` installs
# what is missing.

CC ?= gcc
BUILD ?= build
PKG_CONFIG ?= pkg-config
ifneq ($(V),1)
Q := @
endif

CSTD := -std=gnu11
WARN := -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wundef
OPT ?= -O2 -g
HARDEN := -fstack-protector-strong -D_FORTIFY_SOURCE=2
SANFLAGS_address := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
SANFLAGS_thread := -fsanitize=thread -fno-omit-frame-pointer
ifdef SAN
SANFLAGS := $(SANFLAGS_$(SAN))
HARDEN := -fstack-protector-strong
endif
CFLAGS += $(CSTD) $(WARN) $(OPT) $(HARDEN) $(SANFLAGS) -fPIC -fvisibility=hidden -D_GNU_SOURCE $(EXTRA_CFLAGS)
LDFLAGS += $(SANFLAGS) -Wl,-z,relro,-z,now $(EXTRA_LDFLAGS)
LIBS := -lcrypto -lcurl -ljansson -lpthread

MODULE_SRC := $(wildcard ext/base/*.c vfs/*.c keyprovider/*.c sql/*.c ext/*.c)
OBJ := $(MODULE_SRC:%.c=$(BUILD)/obj/%.o)
# The same sources for static linking: SQLITE_CORE calls the library directly.
STATIC_OBJ := $(MODULE_SRC:%.c=$(BUILD)/static/%.o)

.PHONY: all
all: $(BUILD)/tde.so ## build the extension, build/tde.so

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/static/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -DSQLITE_CORE=1 -MMD -MP -c $< -o $@

$(BUILD)/tde.so: $(OBJ) ext/tde.map
	$(Q)$(CC) -shared $(LDFLAGS) -Wl,--version-script=ext/tde.map -o $@ $(OBJ) $(LIBS)
	@echo "built $@"

$(BUILD)/libtde.a: $(STATIC_OBJ) ## the library for static linking
	$(Q)rm -f $@ && ar rcs $@ $(STATIC_OBJ)

-include $(OBJ:.o=.d) $(STATIC_OBJ:.o=.d)

include tests/tests.mk

.PHONY: clean help deps
clean: ## remove everything built
	rm -rf $(BUILD) build-*

help: ## this list
	@grep -hE '^[a-z][a-z-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  %-18s %s\n", $$1, $$2}'
