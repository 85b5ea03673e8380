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
# With the engine that is chosen by itself, then with OpenSSL's.
UNIT_SUITES = $(foreach b,$(UNIT_BIN),'unit/$(notdir $(b))=$(RUNNER) $(b)') \
              $(foreach b,$(filter %/test_crypto,$(UNIT_BIN)),'unit/test_crypto-openssl=TDE_ENGINE=openssl $(RUNNER) $(b)')
# Where the test key server can be built, the Tcl suite uses it (tests/keyvault).
export TDE_KEYVAULT = $(abspath $(KEYVAULT))
TCL_SUITE := 'tcl=$(TCLSH) tests/run.tcl -so $(BUILD)/tde.so $(TCL_ARGS)'
SMOKES := $(sort $(shell sed -n 's/^\(check-[a-z0-9-]*-smoke\):.*/\1/p' /dev/null $(FRAGMENTS)))
SMOKE_SUITES := $(foreach s,$(SMOKES),'$(s:check-%=%)=$(MAKE) --no-print-directory BUILD=$(BUILD) $(s)')

.PHONY: check check-run unit tcl demo
check: ## all suites, the long ones in their smoke form (README's second command)
	$(Q)sh tests/deps.sh check
	+$(Q)$(MAKE) --no-print-directory check-run

check-run: all $(UNIT_BIN) keyvault-if-can
	+$(Q)sh tests/check.sh $(BUILD)/check 'lint=$(LINT)' $(UNIT_SUITES) $(TCL_SUITE) \
	  'demo:exit=sh tests/demo/demo.sh $(BUILD)/tde.so' \
	  'rehearsals=TCLSH=$(TCLSH) sh tests/demo/rehearse.sh $(BUILD)/tde.so' $(SMOKE_SUITES)

unit: $(UNIT_BIN) ## the unit tests alone
	$(Q)sh tests/check.sh $(BUILD)/check $(UNIT_SUITES)

tcl: all keyvault-if-can ## the Tcl suite alone (TCL_ARGS: file names, or -match TESTS)
	$(Q)sh tests/check.sh $(BUILD)/check $(TCL_SUITE)

.PHONY: demo-restore demo-tenants
demo-restore: ## rehearses backup, restore with a missing key, revocation and rotation, in the sqlite3 shell
	$(Q)sh tests/deps.sh check
	+$(Q)$(MAKE) --no-print-directory all keyvault-if-can
	$(Q)TDE_SO=$(abspath $(BUILD))/tde.so $(TCLSH) tests/demo/restore.tcl

demo-tenants: ## rehearses one tenant of a hundred revoking their key
	$(Q)sh tests/deps.sh check
	+$(Q)$(MAKE) --no-print-directory all keyvault-if-can
	$(Q)TDE_SO=$(abspath $(BUILD))/tde.so $(TCLSH) tests/demo/tenants.tcl

demo: ## encrypts a real data set and shows what it does (README's first command)
	$(Q)sh tests/deps.sh demo
	+$(Q)$(MAKE) --no-print-directory all
	$(Q)sh tests/demo/demo.sh $(BUILD)/tde.so

# ---- the same suites under sanitizers and valgrind ----
# The extension is loaded into programs that are not instrumented, so the
# runtime is preloaded, gcc's; the unit tests are instrumented as a whole.
# A unit test forks children that are to die, so its exit status counts. In the
# Tcl suite reports go to files, and check.sh counts them, whichever process they
# are about; programs that a test starts leak as they please (FOREIGN) and must
# not fail for it, so exitcode=0 there.
# setarch -R: this ThreadSanitizer knows no high-entropy addresses.
SAN_MAKE = $(MAKE) --no-print-directory CC=gcc
SAN_LOG = $(abspath $(BUILD))/reports
FOREIGN := python3* openssl df cc gcc *-gcc* cc1 collect2 ld *-ld* as *-as* bash dash sh env timeout
SAN_CHECK = REPORTS=$(SAN_LOG) FOREIGN='$(FOREIGN)' sh tests/check.sh
preload = LD_PRELOAD=$(shell gcc -print-file-name=$(1))
under_tcl = 'tcl=$(1) $(TCLSH) tests/run.tcl -time 1800 -so $(BUILD)/tde.so $(TCL_ARGS)'

ASAN_OPTS := detect_leaks=1:detect_stack_use_after_return=1
ASAN_UNIT := ASAN_OPTIONS=$(ASAN_OPTS) UBSAN_OPTIONS=print_stacktrace=1
ASAN_TCL = ASAN_OPTIONS=$(ASAN_OPTS):exitcode=0:log_exe_name=1:log_path=$(SAN_LOG)/asan \
  UBSAN_OPTIONS=print_stacktrace=1:log_exe_name=1:log_path=$(SAN_LOG)/ubsan $(call preload,libasan.so)
TSAN_UNIT := TSAN_OPTIONS=die_after_fork=0 setarch -R
TSAN_TCL = TSAN_OPTIONS=die_after_fork=0:log_exe_name=1:log_path=$(SAN_LOG)/tsan setarch -R env $(call preload,libtsan.so)
# Not into compilers and interpreters that the tests start, which are not ours, nor into the
# test key server, which makes too many RSA keys.
VALGRIND := valgrind -q --leak-check=full --errors-for-leak-kinds=definite --show-leak-kinds=definite \
  --suppressions=$(CURDIR)/tests/san/valgrind.supp
VALGRIND_UNIT := $(VALGRIND) --error-exitcode=99
VALGRIND_TCL = $(VALGRIND) --log-file=$(SAN_LOG)/valgrind.%p --trace-children=yes \
  --trace-children-skip=*/cc,*/gcc,*/python3*,*/sh,*/env,*/keyvault/keyvault

.PHONY: asan asan-run tsan tsan-run valgrind valgrind-run
asan: ## unit tests and Tcl suite under AddressSanitizer, UBSan and LeakSanitizer
	+$(Q)$(SAN_MAKE) SAN=address BUILD=$(BUILD)/asan asan-run
asan-run: RUNNER = $(ASAN_UNIT)
asan-run: all $(UNIT_BIN) keyvault-if-can
	$(Q)$(SAN_CHECK) $(BUILD)/check $(UNIT_SUITES) $(call under_tcl,$(ASAN_TCL))

tsan: ## unit tests and Tcl suite under ThreadSanitizer
	+$(Q)$(SAN_MAKE) SAN=thread BUILD=$(BUILD)/tsan tsan-run
tsan-run: RUNNER = $(TSAN_UNIT)
tsan-run: all $(UNIT_BIN) keyvault-if-can
	$(Q)$(SAN_CHECK) $(BUILD)/check $(UNIT_SUITES) $(call under_tcl,$(TSAN_TCL))

valgrind: all $(UNIT_BIN) keyvault-if-can ## unit tests and Tcl suite under valgrind's memcheck (hours; TCL_ARGS for a part)
	+$(Q)$(MAKE) --no-print-directory valgrind-run
valgrind-run: RUNNER = $(VALGRIND_UNIT)
valgrind-run:
	$(Q)$(SAN_CHECK) $(BUILD)/valgrind $(UNIT_SUITES) $(call under_tcl,$(VALGRIND_TCL))

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
coverage-run: all $(UNIT_BIN) keyvault-if-can
	$(Q)find $(BUILD) -name '*.gcda' -exec rm -f {} +
	$(Q)rc=0; TDE_COVERAGE=1 sh tests/check.sh $(BUILD)/check $(UNIT_SUITES) $(TCL_SUITE) || rc=1; \
	  python3 tests/coverage.py $(BUILD) ext=90 vfs=90 keyprovider=0 sql=0 && exit $$rc
