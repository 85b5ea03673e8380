# fuzz.mk: fuzzing of everything that parses what an attacker may have written
# (tests/fuzz/README.md).
#
# Two builds, both with sanitizers: BUILD/fuzz/clang with libFuzzer, one program a
# target, where clang and its runtime are installed; BUILD/fuzz/cc, one program
# for all, with any compiler. Variables: FUZZ_SECONDS (of each target), FUZZ_ONLY
# (target names), FUZZ_RUNS and FUZZ_SEED (the smoke part).
FUZZ_OUT := $(BUILD)/fuzz
FUZZ_TARGETS := slot prefix unit keydoc json keyid instance service text db
FUZZ_CLANG ?= clang
FUZZ_SECONDS ?= 60
FUZZ_RUNS ?= 1500
FUZZ_SEED ?= 1
FUZZ_ONLY ?= $(FUZZ_TARGETS)
FUZZ_SRC := $(MODULE_SRC) $(filter-out %/entry.c %/loop.c,$(sort $(wildcard tests/fuzz/*.c)))
FUZZ_SAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
FUZZ_CFLAGS := $(CSTD) $(WARN) -O1 -g -D_GNU_SOURCE -DSQLITE_CORE=1 $(FUZZ_SAN)
FUZZ_LIBS := -lsqlite3 $(LIBS) -lm

FUZZ_CLANG_OBJ := $(FUZZ_SRC:%.c=$(FUZZ_OUT)/clang/%.o)
FUZZ_CLANG_BIN := $(FUZZ_TARGETS:%=$(FUZZ_OUT)/fuzz-%)
FUZZ_ENTRY := $(FUZZ_TARGETS:%=$(FUZZ_OUT)/clang/entry-%.o)
FUZZ_CC_OBJ := $(FUZZ_SRC:%.c=$(FUZZ_OUT)/cc/%.o) $(FUZZ_OUT)/cc/tests/fuzz/loop.o

$(FUZZ_OUT)/clang/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(FUZZ_CLANG) $(FUZZ_CFLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c $< -o $@

$(FUZZ_ENTRY): $(FUZZ_OUT)/clang/entry-%.o: tests/fuzz/entry.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(FUZZ_CLANG) $(FUZZ_CFLAGS) -DFUZZ_TARGET=$* -MMD -MP -c $< -o $@

$(FUZZ_CLANG_BIN): $(FUZZ_OUT)/fuzz-%: $(FUZZ_OUT)/clang/entry-%.o $(FUZZ_CLANG_OBJ)
	$(Q)$(FUZZ_CLANG) $(FUZZ_SAN) -fsanitize=fuzzer -o $@ $^ $(FUZZ_LIBS)

$(FUZZ_OUT)/cc/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(FUZZ_CFLAGS) -MMD -MP -c $< -o $@

$(FUZZ_OUT)/loop: $(FUZZ_CC_OBJ)
	$(Q)$(CC) $(FUZZ_SAN) -o $@ $^ $(FUZZ_LIBS)

-include $(FUZZ_CLANG_OBJ:.o=.d) $(FUZZ_ENTRY:.o=.d) $(FUZZ_CC_OBJ:.o=.d)
.SECONDARY: $(FUZZ_CLANG_OBJ) $(FUZZ_CC_OBJ) $(FUZZ_ENTRY)

# Builds libFuzzer's programs when this machine can; says why when it can not.
FUZZ_CAN := sh tests/fuzz/can.sh $(FUZZ_CLANG)
FUZZ_RUN := sh tests/fuzz/run.sh $(FUZZ_OUT)

.PHONY: check-fuzz check-fuzz-smoke fuzz-programs
fuzz-programs: $(FUZZ_CLANG_BIN)

check-fuzz: $(FUZZ_OUT)/loop ## each fuzz target for FUZZ_SECONDS (60), coverage-guided (clang)
	+$(Q)if $(FUZZ_CAN); then $(MAKE) --no-print-directory BUILD=$(BUILD) fuzz-programs || exit 1; fi
	$(Q)$(FUZZ_RUN) long $(FUZZ_SECONDS) $(FUZZ_ONLY)

check-fuzz-smoke: $(FUZZ_OUT)/loop ## the kept fuzz inputs, and some thousand new ones for each target
	+$(Q)if $(FUZZ_CAN); then $(MAKE) --no-print-directory BUILD=$(BUILD) fuzz-programs || exit 1; fi
	$(Q)FUZZ_RUNS=$(FUZZ_RUNS) FUZZ_SEED=$(FUZZ_SEED) $(FUZZ_RUN) smoke 0 $(FUZZ_ONLY)
