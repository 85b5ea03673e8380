# keyvault.mk: the test key server and its proof (tests/keyvault/README.md).
#
# The server needs libmicrohttpd-dev; check-azure-sdk needs npm and, the first
# time, the network. Where something is missing the suites skip and say what; `make
# keyvault` installs it, as `make check` does.
KEYVAULT_OUT := $(BUILD)/keyvault
KEYVAULT_SRC := $(sort $(wildcard tests/keyvault/*.c))
KEYVAULT_OBJ := $(KEYVAULT_SRC:tests/keyvault/%.c=$(KEYVAULT_OUT)/%.o)
KEYVAULT := $(KEYVAULT_OUT)/keyvault
KEYVAULT_ARGS ?=

$(KEYVAULT_OUT)/%.o: tests/keyvault/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

$(KEYVAULT): $(KEYVAULT_OBJ)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -lmicrohttpd -lcrypto -ljansson -lpthread

-include $(KEYVAULT_OBJ:.o=.d)

KEYVAULT_CAN := echo '\#include <microhttpd.h>' | $(CC) -E - >/dev/null 2>&1

.PHONY: keyvault-if-can
keyvault-if-can:
	+$(Q)if $(KEYVAULT_CAN); then $(MAKE) --no-print-directory BUILD=$(BUILD) $(KEYVAULT); fi

# Builds the server, or says why not and ends the recipe as a skipped suite.
define keyvault_built
	+$(Q)if ! $(KEYVAULT_CAN); then \
	  echo "skipped: libmicrohttpd-dev is not installed"; echo "0 passed, 0 failed, 1 skipped"; exit 0; fi; \
	$(MAKE) --no-print-directory BUILD=$(BUILD) $(KEYVAULT) && $(1)
endef

.PHONY: keyvault check-azure-sdk check-transit-peer check-keyvault-smoke
keyvault: ## start the test key server with a sample tenant, and say what to try
	$(Q)sh tests/deps.sh check
	+$(Q)$(MAKE) --no-print-directory $(KEYVAULT)
	$(Q)sh tests/keyvault/start.sh $(KEYVAULT) $(KEYVAULT_OUT)/state $(KEYVAULT_ARGS)

check-azure-sdk: ## Microsoft's own npm packages against the test key server and the product (npm, network)
	$(call keyvault_built,$(MAKE) --no-print-directory BUILD=$(BUILD) $(AZURE_OUT)/client && \
	  sh tests/keyvault/sdk/run.sh $(KEYVAULT) $(KEYVAULT_OUT) $(AZURE_OUT)/client)

check-keyvault-smoke: ## the test key server's own faults, identities and clock (offline)
	$(call keyvault_built,python3 tests/keyvault/smoke.py $(KEYVAULT) tests/keyvault/sample.json)

# Debian's python3, for which its packages are.
check-transit-peer: all ## Debian's python3-hvac against the test key server and what the product wrapped there
	$(call keyvault_built,/usr/bin/python3 -W ignore::DeprecationWarning tests/keyvault/transit_peer.py $(KEYVAULT) tests/keyvault/sample.json \
	  $(abspath $(BUILD))/tde.so)
