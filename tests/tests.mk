# tests.mk: the targets that test, included from the Makefile.
#
# A suite in a folder of its own brings a fragment tests/NAME/NAME.mk, and takes
# part in `make check` with the target check-NAME-smoke. Every suite's last line
# is `N passed, N failed, N skipped`; tests/check.sh adds the suites up.
FRAGMENTS := $(foreach d,$(wildcard tests/*),$(wildcard $(d)/$(notdir $(d)).mk))
-include $(FRAGMENTS)

# ---- unit tests: one program a file, against the objects for static linking ----
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/unit/%)

$(BUILD)/unit/%.o: tests/unit/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) -DSQLITE_CORE=1 -I. -MMD -MP -c $< -o $@

$(BUILD)/unit/%: $(BUILD)/unit/%.o $(STATIC_OBJ)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ -lsqlite3 $(LIBS)

.SECONDARY: $(UNIT_BIN:=.o)
-include $(UNIT_BIN:=.d)

# ---- what `make check` runs, as name=command ----
TCLSH ?= tclsh
TCL_ARGS ?=
UNIT_SUITES := $(foreach b,$(UNIT_BIN),'unit/$(notdir $(b))=$(RUNNER) $(b)')
TCL_SUITE := 'tcl=$(TCLSH) tests/run.tcl -so $(BUILD)/tde.so $(TCL_ARGS)'
SMOKES := $(sort $(shell sed -n 's/^\(check-[a-z0-9-]*-smoke\):.*/\1/p' /dev/null $(FRAGMENTS)))
SMOKE_SUITES := $(foreach s,$(SMOKES),'$(s:check-%=%)=$(MAKE) --no-print-directory BUILD=$(BUILD) $(s)')

.PHONY: check check-run unit tcl demo
check: ## all suites, the long ones in their smoke form (README's second command)
	$(Q)sh tests/deps.sh check
	+$(Q)$(MAKE) --no-print-directory check-run

check-run: all $(UNIT_BIN)
	+$(Q)sh tests/check.sh $(BUILD)/check 'lint=$(LINT)' $(UNIT_SUITES) $(TCL_SUITE) \
	  'demo:exit=sh tests/demo/demo.sh $(BUILD)/tde.so' $(SMOKE_SUITES)

unit: $(UNIT_BIN) ## the unit tests alone
	$(Q)sh tests/check.sh $(BUILD)/check $(UNIT_SUITES)

tcl: all ## the Tcl suite alone (TCL_ARGS: file names, or -match TESTS)
	$(Q)sh tests/check.sh $(BUILD)/check $(TCL_SUITE)

demo: ## encrypts a real data set and shows what it does (README's first command)
	$(Q)sh tests/deps.sh demo
	+$(Q)$(MAKE) --no-print-directory all
	$(Q)sh tests/demo/demo.sh $(BUILD)/tde.so

# ---- the same suites under sanitizers and valgrind ----
# The extension is loaded into programs that are not instrumented, so the
# runtime is preloaded, gcc's; the unit tests are instrumented as a whole.
# setarch -R: this release's ThreadSanitizer knows no high-entropy addresses.
SAN_MAKE = $(MAKE) --no-print-directory CC=gcc
ASAN_ENV = env ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:abort_on_error=0 \
           UBSAN_OPTIONS=print_stacktrace=1 LSAN_OPTIONS=suppressions=$(CURDIR)/tests/san/lsan.supp:print_suppressions=0
TSAN_ENV = env TSAN_OPTIONS=halt_on_error=0:exitcode=66:suppressions=$(CURDIR)/tests/san/tsan.supp setarch -R
VALGRIND = valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
           --suppressions=$(CURDIR)/tests/san/valgrind.supp
preload = LD_PRELOAD=$(shell gcc -print-file-name=$(1))

.PHONY: asan asan-run tsan tsan-run valgrind
asan: ## unit tests and Tcl suite under AddressSanitizer, UBSan and LeakSanitizer
	+$(Q)$(SAN_MAKE) SAN=address BUILD=$(BUILD)/asan RUNNER="$(ASAN_ENV)" asan-run
asan-run: all $(UNIT_BIN)
	$(Q)sh tests/check.sh $(BUILD)/check $(UNIT_SUITES) \
	  'tcl=$(ASAN_ENV) $(call preload,libasan.so) $(TCLSH) tests/run.tcl -time 1200 -so $(BUILD)/tde.so $(TCL_ARGS)'

tsan: ## unit tests and Tcl suite under ThreadSanitizer
	+$(Q)$(SAN_MAKE) SAN=thread BUILD=$(BUILD)/tsan RUNNER="$(TSAN_ENV)" tsan-run
tsan-run: all $(UNIT_BIN)
	$(Q)sh tests/check.sh $(BUILD)/check $(UNIT_SUITES) \
	  'tcl=$(TSAN_ENV) env $(call preload,libtsan.so) $(TCLSH) tests/run.tcl -time 1200 -so $(BUILD)/tde.so $(TCL_ARGS)'

valgrind: all $(UNIT_BIN) ## unit tests and Tcl suite under valgrind's memcheck (long)
	+$(Q)$(MAKE) --no-print-directory RUNNER="$(VALGRIND)" valgrind-run
.PHONY: valgrind-run
valgrind-run:
	$(Q)sh tests/check.sh $(BUILD)/valgrind $(UNIT_SUITES) \
	  'tcl=$(TCLSH) tests/run.tcl -under "$(VALGRIND)" -time 3600 -so $(BUILD)/tde.so $(TCL_ARGS)'

# ---- static checks ----
LINT = python3 tests/lint/lint.py --so $(BUILD)/tde.so

.PHONY: lint tidy format compile-check coverage coverage-run
lint: all ## the project's own rules: includes, banned calls, secrets, exports
	$(Q)$(LINT)

tidy: ## clang-tidy and cppcheck, clean
	$(Q)printf '%s\n' $(MODULE_SRC) | xargs -P 2 -n 1 sh tests/lint/tidy.sh
	$(Q)cppcheck -q --std=c11 --error-exitcode=1 --inline-suppr --library=posix -j 2 \
	  --enable=warning,performance,portability --suppressions-list=tests/lint/cppcheck.txt \
	  -D_GNU_SOURCE -DSQLITE_CORE=1 -I. $(MODULE_SRC) $(UNIT_SRC)
	@echo "tidy: clean"

compile-check: ## everything compiles without a warning, with gcc and with clang
	+$(Q)for cc in gcc clang; do \
	  $(MAKE) --no-print-directory CC=$$cc BUILD=$(BUILD)/cc-$$cc all lib compile-units || exit 1; done
	@echo "compile-check: gcc and clang, no warnings"
.PHONY: compile-units
compile-units: $(UNIT_BIN)

coverage: ## line coverage of unit tests and Tcl suite, as a table (ext, vfs: 90 % or more)
	+$(Q)$(SAN_MAKE) SAN=coverage BUILD=$(BUILD)/coverage coverage-run
coverage-run: all $(UNIT_BIN)
	$(Q)find $(BUILD) -name '*.gcda' -exec rm -f {} +
	$(Q)sh tests/check.sh $(BUILD)/check $(UNIT_SUITES) $(TCL_SUITE)
	$(Q)python3 tests/coverage.py $(BUILD) ext=90 vfs=90 keyprovider=0 sql=0
