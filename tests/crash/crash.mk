# Power loss, process death and faults (tests/crash/README.md). Included from
# tests/tests.mk.
#
# N: outages of check-crash; ROUNDS: kills of check-kill; CRASH_JOBS: processes.
CRASH_OUT := $(BUILD)/crash
CRASH_JOBS ?= 2
N ?= 10000
ROUNDS ?= 1000
CAMPAIGNS ?= 300

CRASH_LIBS := -lsqlite3 $(LIBS) -ldl
# The product's own file-system calls go to the simulated disk (posix.c).
CRASH_WRAP := openat renameat renameat2 linkat unlinkat fstatat stat lstat fchmod fchown llistxattr fsync access clock_gettime
crash_wrap = $(addprefix -Wl$(comma)--wrap=,$(1))
comma := ,
CRASH_OBJ := $(patsubst %,$(CRASH_OUT)/%.o,disk crashvfs posix model run turns scenarios scratch)

$(CRASH_OUT)/%.o: tests/crash/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -DSQLITE_CORE=1 -MMD -MP -c $< -o $@

$(CRASH_OUT)/crash: $(CRASH_OUT)/crash.o $(CRASH_OBJ) $(STATIC_OBJ)
	$(Q)$(CC) $(LDFLAGS) $(call crash_wrap,$(CRASH_WRAP)) -o $@ $^ $(CRASH_LIBS)

-include $(wildcard $(CRASH_OUT)/*.d)

.PHONY: check-crash check-crash-smoke
check-crash: $(CRASH_OUT)/crash ## power loss: N=10000 seeded outages, and one at every operation of header changes
	$(Q)$(CRASH_OUT)/crash -n $(N) -j $(CRASH_JOBS) && \
	for s in create create-wal header header-wal; do \
	  $(CRASH_OUT)/crash -s $$s --sweep -n 4 -j $(CRASH_JOBS) || exit 1; done

check-crash-smoke: $(CRASH_OUT)/crash ## power loss, 300 outages
	$(Q)$(CRASH_OUT)/crash -n 300 -j $(CRASH_JOBS)

# The lock bytes at 128 KiB: small databases reach behind them, as others do from 1 GiB on.
.PHONY: check-crash-locks
check-crash-locks: ## power loss around SQLite's lock bytes: N=10000 outages
	$(Q)$(MAKE) BUILD=$(BUILD)/locks EXTRA_CFLAGS="$(EXTRA_CFLAGS) -DTDE_HOLE_START=0x20000ull" \
	  $(BUILD)/locks/crash/crash
	$(Q)$(BUILD)/locks/crash/crash -n $(N) -m tde -j $(CRASH_JOBS)

$(CRASH_OUT)/kill: $(addprefix $(CRASH_OUT)/,kill.o crowd.o disk.o scratch.o) $(STATIC_OBJ)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(CRASH_LIBS)

.PHONY: check-kill check-kill-smoke
check-kill: $(CRASH_OUT)/kill ## kill -9 of writers and readers, ROUNDS=1000 times
	$(Q)$(CRASH_OUT)/kill -n $(ROUNDS)

check-kill-smoke: $(CRASH_OUT)/kill ## the same, 20 rounds
	$(Q)$(CRASH_OUT)/kill -n 20

$(CRASH_OUT)/stress: $(addprefix $(CRASH_OUT)/,stress.o actor.o crowd.o disk.o model.o scratch.o) $(STATIC_OBJ)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(CRASH_LIBS)

.PHONY: check-stress check-stress-smoke
check-stress: $(CRASH_OUT)/stress ## processes do anything at random, and are killed: CAMPAIGNS=300 of them, and as many with threads
	$(Q)$(CRASH_OUT)/stress -n $(CAMPAIGNS)
	$(Q)$(CRASH_OUT)/stress -n $(CAMPAIGNS) -t

check-stress-smoke: $(CRASH_OUT)/stress ## the same, 8 campaigns
	$(Q)$(CRASH_OUT)/stress -n 8

$(CRASH_OUT)/race: $(addprefix $(CRASH_OUT)/,race.o trap.o crowd.o scratch.o) $(STATIC_OBJ)
	$(Q)$(CC) $(LDFLAGS) $(call crash_wrap,renameat renameat2 linkat unlinkat fchmod fsync) -o $@ $^ $(CRASH_LIBS)

.PHONY: check-race check-race-smoke check-race-threads check-race-threads-smoke
check-race: $(CRASH_OUT)/race ## another process acts at every call of an operation
	$(Q)$(CRASH_OUT)/race

check-race-smoke: $(CRASH_OUT)/race ## the same, at some of the calls
	$(Q)$(CRASH_OUT)/race -c 14

check-race-threads: $(CRASH_OUT)/race ## another thread does
	$(Q)$(CRASH_OUT)/race -t

check-race-threads-smoke: $(CRASH_OUT)/race ## the same, at some of the calls
	$(Q)$(CRASH_OUT)/race -t -c 18

# The product as one object, its allocations and its clock renamed to those of
# faults.c.
CRASH_RENAMED := malloc calloc realloc strdup clock_gettime
$(CRASH_OUT)/product.o: $(STATIC_OBJ)
	@mkdir -p $(@D)
	$(Q)$(LD) -r -o $@ $^
	$(Q)objcopy $(foreach s,$(CRASH_RENAMED),--redefine-sym $(s)=fault_$(s)) $@

$(CRASH_OUT)/faults: $(CRASH_OUT)/faults.o $(CRASH_OBJ) $(CRASH_OUT)/product.o
	$(Q)$(CC) $(LDFLAGS) $(call crash_wrap,$(CRASH_WRAP)) -o $@ $^ $(CRASH_LIBS)

.PHONY: check-faults check-faults-smoke
check-faults: $(CRASH_OUT)/faults ## every allocation, I/O call and random draw fails once (run it with SAN=address, too)
	$(Q)$(CRASH_OUT)/faults

check-faults-smoke: $(CRASH_OUT)/faults ## the same, ever larger steps
	$(Q)$(CRASH_OUT)/faults -c 1

.PHONY: check-crash-mutants
check-crash-mutants: ## the shim broken in known ways: these tests must notice (12 minutes)
	$(Q)python3 tests/crash/mutants.py
