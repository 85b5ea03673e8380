# bench.mk: the benchmark (tests/bench/README.md).
#
# Variables: BENCH_DIR (where the databases go; put it on the disk you mean to
# measure), BENCH_ARGS (more options for run.py), BENCH_SQLITE (an unpacked SQLite
# source tree; without it the source package of the installed library is
# fetched, as tests/sqlite does and into the same place), WORKLOAD, MODE (tde or
# plain) and SCALE for `make profile`.
BENCH_OUT := $(BUILD)/bench
BENCH_DIR ?= $(BENCH_OUT)/work
BENCH_RUN := python3 tests/bench/run.py --build $(BUILD) --dir $(BENCH_DIR)
BENCH_CFLAGS := $(CSTD) $(WARN) -O2 -g -D_GNU_SOURCE

$(BENCH_OUT)/speedtest1.c:
	@mkdir -p $(@D)
	$(Q)tree="$(BENCH_SQLITE)"; \
	  test -n "$$tree" || tree=$$(python3 tests/sqlite/fetch.py --series installed --dest $(BUILD)/sqlite-src) || exit 1; \
	  cp "$$tree/test/speedtest1.c" $@

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

# Without the source package (no network) there is nothing to link: skipped.
.PHONY: check-bench-smoke
check-bench-smoke: all ## each workload once, small, plain and encrypted, results checked
	$(Q)if $(MAKE) -s --no-print-directory BUILD=$(BUILD) $(BENCH_OUT)/speedtest1.c; then \
	  $(MAKE) -s --no-print-directory BUILD=$(BUILD) $(BENCH_OUT)/workloads && \
	  python3 tests/bench/run.py --build $(BUILD) --dir $(BENCH_OUT)/smoke --scale 0.01 --smoke; \
	else echo "speedtest1.c could not be fetched"; echo "0 passed, 0 failed, 1 skipped"; fi

WORKLOAD ?= scan
MODE ?= tde
SCALE ?= 0.1
profile: all $(BENCH_OUT)/workloads ## where the time of WORKLOAD=name goes: callgrind, strace, perf
	$(Q)sh tests/bench/profile.sh $(BENCH_OUT)/workloads $(WORKLOAD) $(MODE) $(abspath $(BUILD))/tde.so $(BENCH_DIR) $(SCALE)
