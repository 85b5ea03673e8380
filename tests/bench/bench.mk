# bench.mk: the benchmark (tests/bench/README.md).
#
# Variables: BENCH_DIR (where the databases go; put it on the disk you mean to
# measure), BENCH_ARGS (more options for run.py), SQLITE_SRC (an unpacked SQLite
# source tree; without it the distribution's source package is fetched),
# WORKLOAD, MODE (tde or plain) and SCALE for `make profile`.
BENCH_OUT := $(BUILD)/bench
BENCH_DIR ?= $(BENCH_OUT)/work
BENCH_RUN := python3 tests/bench/run.py --build $(BUILD) --dir $(BENCH_DIR)
BENCH_CFLAGS := $(CSTD) $(WARN) -O2 -g -D_GNU_SOURCE

# SQLITE_SRC goes to the script through the environment.
$(BENCH_OUT)/speedtest1.c: | tests/bench/fetch-speedtest1.sh
	$(Q)SQLITE_SRC="$(SQLITE_SRC)" sh tests/bench/fetch-speedtest1.sh $@

# SQLite's own file: its warnings are not ours to fix.
$(BENCH_OUT)/speedtest1.o: $(BENCH_OUT)/speedtest1.c
	$(Q)$(CC) -O2 -g -w -Dmain=speedtest1_main -c $< -o $@

$(BENCH_OUT)/workloads: tests/bench/workloads.c $(BENCH_OUT)/speedtest1.o
	$(Q)$(CC) $(BENCH_CFLAGS) $^ -o $@ -lsqlite3 -ldl

.PHONY: bench bench-quick bench-docs profile
bench: all $(BENCH_OUT)/workloads ## plain and encrypted SQLite timed against each other (about 4 minutes)
	$(Q)$(BENCH_RUN) $(BENCH_ARGS)

bench-quick: all $(BENCH_OUT)/workloads ## the same at half the size, 3 rounds (under 2 minutes)
	$(Q)$(BENCH_RUN) --scale 0.5 --rounds 3 $(BENCH_ARGS)

bench-docs: all $(BENCH_OUT)/workloads ## make bench, and put its table into tests/bench/README.md
	$(Q)$(BENCH_RUN) --update-docs $(BENCH_ARGS)

WORKLOAD ?= scan
MODE ?= tde
SCALE ?= 0.1
profile: all $(BENCH_OUT)/workloads ## where the time of WORKLOAD=name goes: callgrind, strace, perf
	$(Q)sh tests/bench/profile.sh $(BENCH_OUT)/workloads $(WORKLOAD) $(MODE) $(abspath $(BUILD))/tde.so $(BENCH_DIR) $(SCALE)
