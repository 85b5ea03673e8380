# azure.mk: the product against the test key server, over TLS (tests/README.md).
# Included from tests/tests.mk; the server is built by tests/keyvault/keyvault.mk.
AZURE_OUT := $(BUILD)/azure
AZURE_COMMON := $(AZURE_OUT)/server.o $(AZURE_OUT)/leaks.o
AZURE_CONFIG := tests/keyvault/sample.json

$(AZURE_OUT)/%.o: tests/azure/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -DSQLITE_CORE=1 -I. -MMD -MP -c $< -o $@

$(AZURE_OUT)/%: $(AZURE_OUT)/%.o $(AZURE_COMMON) $(STATIC_OBJ)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -lsqlite3 $(LIBS)

.SECONDARY: $(AZURE_COMMON) $(AZURE_OUT)/matrix.o $(AZURE_OUT)/client.o $(AZURE_OUT)/opening.o
-include $(wildcard $(AZURE_OUT)/*.d)

.PHONY: check-azure check-azure-smoke
check-azure: ## every operation and identity against every fault of the test key server
	$(call keyvault_built,$(MAKE) --no-print-directory BUILD=$(BUILD) $(AZURE_OUT)/matrix && \
	  $(RUNNER) $(AZURE_OUT)/matrix $(KEYVAULT) $(AZURE_CONFIG) $(AZURE_ARGS))

check-azure-smoke: ## the same, a part of it
	$(call keyvault_built,$(MAKE) --no-print-directory BUILD=$(BUILD) $(AZURE_OUT)/matrix && \
	  $(RUNNER) $(AZURE_OUT)/matrix $(KEYVAULT) $(AZURE_CONFIG) -smoke)

.PHONY: bench-opening
bench-opening: ## the time to open a database whose key is in a vault, beside a plain one
	$(call keyvault_built,$(MAKE) --no-print-directory BUILD=$(BUILD) $(AZURE_OUT)/opening && \
	  $(AZURE_OUT)/opening $(KEYVAULT) $(AZURE_CONFIG))
