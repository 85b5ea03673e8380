# bench.mk: the benchmark (tests/bench/README.md).
#
# Variables: BENCH_DIR (where the databases go; put it on the disk you mean to
# measure), BENCH_ARGS (more options for run.py), BENCH_PEERS (the peers to run
# beside, "sqlcipher,mc"; empty: none), BENCH_SQLITE (an unpacked SQLite
# source tree; without it the source package of the installed library is
# fetched, as tests/sqlite does and into the same place), WORKLOAD, MODE (tde or
# plain) and SCALE for `make profile`.
BENCH_OUT := $(BUILD)/bench
BENCH_DIR ?= $(BENCH_OUT)/work
BENCH_PEERS ?= sqlcipher,mc
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

BENCH_C := tests/bench/workloads.c $(BENCH_OUT)/speedtest1.o
BENCH_H := tests/bench/common.h
$(BENCH_OUT)/workloads: $(BENCH_C) $(BENCH_H)
	$(Q)$(CC) $(BENCH_CFLAGS) $(BENCH_C) -o $@ -lsqlite3 -ldl -lpthread

$(BENCH_OUT)/sweep: tests/bench/sweep.c $(BENCH_H)
	@mkdir -p $(@D)
	$(Q)$(CC) $(BENCH_CFLAGS) $< -o $@ -lsqlite3 -ldl

# ---- peers ----
#
# SQLite3MultipleCiphers: its amalgamation is in an npm package, whose version
# is fixed here. Built with those options of Debian's libsqlite3 that change
# what a workload costs, and with the vector instructions that it asks for.
MC_PACKAGE := better-sqlite3-multiple-ciphers
MC_VERSION := 12.11.1
MC_SQLITE := $(BENCH_OUT)/mc/package/deps/sqlite3
MC_FLAGS := -DSQLITE_THREADSAFE=1 -DSQLITE_SECURE_DELETE -DSQLITE_OMIT_LOOKASIDE \
  -DSQLITE_ENABLE_PREUPDATE_HOOK -DSQLITE_ENABLE_SESSION -DSQLITE_ENABLE_UNLOCK_NOTIFY \
  -DSQLITE_ENABLE_COLUMN_METADATA -DSQLITE_ENABLE_DBSTAT_VTAB -DSQLITE_ENABLE_STMTVTAB \
  -DSQLITE_ENABLE_FTS3 -DSQLITE_ENABLE_FTS3_PARENTHESIS -DSQLITE_ENABLE_RTREE -DSQLITE_SOUNDEX \
  -DSQLITE_MAX_VARIABLE_NUMBER=250000 -DSQLITE_TEMP_STORE=1
ifeq ($(shell uname -m),x86_64)
MC_FLAGS += -msse4.2 -maes
endif

$(MC_SQLITE)/sqlite3.c:
	@mkdir -p $(BENCH_OUT)/mc
	$(Q)command -v npm > /dev/null || { echo "bench: npm is needed for the peer $(MC_PACKAGE); or BENCH_PEERS=sqlcipher"; exit 1; }
	$(Q)cd $(BENCH_OUT)/mc && npm pack --silent $(MC_PACKAGE)@$(MC_VERSION) > /dev/null && \
	  tar xzf $(MC_PACKAGE)-$(MC_VERSION).tgz
	@touch $@

$(BENCH_OUT)/mc.o: $(MC_SQLITE)/sqlite3.c
	@echo "building the peer SQLite3MultipleCiphers (a minute)"
	$(Q)$(CC) -O2 -w $(MC_FLAGS) -c $< -o $@

$(BENCH_OUT)/workloads-mc: $(BENCH_C) $(BENCH_H) $(BENCH_OUT)/mc.o
	$(Q)$(CC) $(BENCH_CFLAGS) -isystem $(MC_SQLITE) $(BENCH_C) $(BENCH_OUT)/mc.o -o $@ -ldl -lpthread -lm

# Debian's own SQLCipher.
$(BENCH_OUT)/workloads-sqlcipher: $(BENCH_C) $(BENCH_H)
	$(Q)test -f /usr/include/sqlcipher/sqlite3.h || { echo "bench: libsqlcipher-dev is needed (make deps PACKAGES=bench); or BENCH_PEERS=mc"; exit 1; }
	$(Q)$(CC) $(BENCH_CFLAGS) -isystem /usr/include/sqlcipher $(BENCH_C) -o $@ -lsqlcipher -ldl -lpthread

comma := ,
PEER_PROGRAMS := $(patsubst %,$(BENCH_OUT)/workloads-%,$(subst $(comma), ,$(BENCH_PEERS)))

.PHONY: bench bench-quick bench-docs bench-peers profile
bench-peers: $(PEER_PROGRAMS)

bench: all $(BENCH_OUT)/workloads bench-peers ## plain SQLite, the extension and its peers timed against each other (about 20 minutes)
	$(Q)$(BENCH_RUN) --peers "$(BENCH_PEERS)" $(BENCH_ARGS)

bench-quick: all $(BENCH_OUT)/workloads ## plain SQLite and the extension, half the size, 3 rounds (under 2 minutes)
	$(Q)$(BENCH_RUN) --scale 0.5 --rounds 3 $(BENCH_ARGS)

bench-docs: all $(BENCH_OUT)/workloads bench-peers ## make bench, and put its tables and chart into tests/bench
	$(Q)$(BENCH_RUN) --peers "$(BENCH_PEERS)" --update-docs $(BENCH_ARGS)

# Up to 10 GB: the disk needs room for two copies of that, one mode after the other.
.PHONY: bench-sweep
bench-sweep: all $(BENCH_OUT)/workloads $(BENCH_OUT)/sweep ## cost by database size, page size, open databases, reader threads
	$(Q)python3 tests/bench/sweep.py --build $(BUILD) --dir $(BENCH_DIR)-sweep $(BENCH_ARGS)

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

.PHONY: bench-callgrind
bench-callgrind: all $(BENCH_OUT)/workloads ## instruction counts of the workloads against those checked in (3 %)
	$(Q)CC="$(CC)" python3 tests/bench/callgrind.py --build $(BUILD) $(CALLGRIND_ARGS)

# What the checks of many open databases cost the process itself.
$(BENCH_OUT)/micro_checks: tests/bench/micro_checks.c $(STATIC_OBJ)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -DSQLITE_CORE=1 -I. $(LDFLAGS) -o $@ $^ -lsqlite3 $(LIBS)

.PHONY: bench-checks
bench-checks: $(BENCH_OUT)/micro_checks ## what a check costs by the number of open databases (seconds)
	$(Q)$(BENCH_OUT)/micro_checks
