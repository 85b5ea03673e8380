# tamper.mk: what is sealed cannot be changed unseen. Included from tests/tests.mk.
TAMPER_OUT := $(BUILD)/tamper
TAMPER_OBJ := $(patsubst tests/tamper/%.c,$(TAMPER_OUT)/%.o,$(wildcard tests/tamper/*.c))

$(TAMPER_OUT)/%.o: tests/tamper/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -DSQLITE_CORE=1 -MMD -MP -c $< -o $@

$(TAMPER_OUT)/tamper: $(TAMPER_OBJ) $(STATIC_OBJ)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -lsqlite3 $(LIBS)

-include $(TAMPER_OBJ:.o=.d)

.PHONY: check-tamper check-tamper-smoke
check-tamper: $(TAMPER_OUT)/tamper ## every bit of sealed units and headers flipped, units moved, cut, replayed
	$(Q)$(RUNNER) $(TAMPER_OUT)/tamper $(TAMPER_ARGS)

check-tamper-smoke: check-tamper
