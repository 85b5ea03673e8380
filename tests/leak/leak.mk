# leak.mk: nothing that SQLite writes is readable below the shim. Included from
# tests/tests.mk.
LEAK_OUT := $(BUILD)/leak
LEAK_OBJ := $(LEAK_OUT)/leak.o $(LEAK_OUT)/leakvfs.o

$(LEAK_OUT)/%.o: tests/leak/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -MMD -MP -c $< -o $@

$(LEAK_OUT)/leak: $(LEAK_OBJ) $(BUILD)/libtde.a
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -lsqlite3 $(LIBS)

-include $(LEAK_OBJ:.o=.d)

.PHONY: check-leak check-leak-smoke
check-leak: $(LEAK_OUT)/leak ## every byte that is written, looked at below the shim
	$(Q)$(RUNNER) $(LEAK_OUT)/leak

check-leak-smoke: check-leak
