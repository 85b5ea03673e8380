# SQLite's own test suite through the shim. Included from tests/tests.mk.
#
# The source is Debian's, of the version installed here (or, for check-sqlite-new,
# the newest in Debian), kept in build/sqlite-src; programs and the outcomes of
# the plain control run are kept in build/sqlite. Packages: dpkg-dev, tcl-dev,
# zlib1g-dev, python3, beside those that the extension itself needs.

SQLITE_SUITE := $(CURDIR)/tests/sqlite
SQLITE_SRC := $(BUILD)/sqlite-src
SQLITE_OUT := $(BUILD)/sqlite
SQLITE_JOBS ?= 2
SQLITE_TCL = $(firstword $(wildcard /usr/lib/*/tcl8.6 /usr/lib/tcl8.6))

# $(1): the series, installed or newest.
define sqlite_programs
	$(Q)python3 $(SQLITE_SUITE)/fetch.py --series $(1) --dest $(SQLITE_SRC) >/dev/null
	$(Q)sh $(SQLITE_SUITE)/build.sh $(SQLITE_SRC)/$(1) $(SQLITE_OUT)/$(1) "$(SQLITE_TCL)" $(SQLITE_JOBS)
endef
sqlite_run = python3 $(SQLITE_SUITE)/run.py --source $(SQLITE_SRC)/$(1)/tree --out $(SQLITE_OUT)/$(1) --jobs $(SQLITE_JOBS)

.PHONY: check-sqlite check-sqlite-smoke check-sqlite-new check-tcl-new check-tcl-locks check-tcl-locks-run
check-sqlite: ## SQLite's own test suite through the shim, plain as control (an hour)
	$(call sqlite_programs,installed)
	$(Q)$(call sqlite_run,installed) $(SQLITE_SUITE_ARGS)

check-sqlite-smoke: ## some 30 files of SQLite's suite through the shim (3 minutes)
	$(call sqlite_programs,installed)
	$(Q)$(call sqlite_run,installed) --smoke

check-sqlite-new: ## the suite of Debian's newest SQLite, built from its source
	$(call sqlite_programs,newest)
	$(Q)$(call sqlite_run,newest) --expected expected-new.txt --permutations veryquick $(SQLITE_SUITE_ARGS)

# The Tcl suite, whose programs take the library by its name: tclsh, python3, and a shell of that
# version. TCL_ARGS as of `make tcl`.
SQLITE_LIB := $(abspath $(BUILD))/sqlite-lib
check-tcl-new: all keyvault-if-can ## the Tcl suite with Debian's newest SQLite, built from its source
	$(Q)python3 $(SQLITE_SUITE)/fetch.py --series newest --dest $(SQLITE_SRC) >/dev/null
	$(Q)CC='$(CC)' sh $(SQLITE_SUITE)/library.sh $(SQLITE_SRC)/newest $(SQLITE_LIB)
	$(Q)LD_LIBRARY_PATH=$(SQLITE_LIB) PATH=$(SQLITE_LIB):$$PATH \
	  sh tests/check.sh $(BUILD)/check-new $(TCL_SUITE)

# The Tcl suite where SQLite's lock bytes are at 128 KiB, so that what its tests fill lies on both
# sides of them: the extension and the installed SQLite, built so.
LOCK_BYTES := 0x20000
check-tcl-locks: ## the Tcl suite with SQLite's lock bytes at 128 KiB, in the extension and in an SQLite built for it
	+$(Q)$(MAKE) --no-print-directory BUILD=$(BUILD)/locks EXTRA_CFLAGS="$(EXTRA_CFLAGS) -DTDE_HOLE_START=$(LOCK_BYTES)ull" \
	  SQLITE_SRC=$(SQLITE_SRC) check-tcl-locks-run

check-tcl-locks-run: all keyvault-if-can
	$(Q)python3 $(SQLITE_SUITE)/fetch.py --series installed --dest $(SQLITE_SRC) >/dev/null
	$(Q)CC='$(CC)' LOCK_BYTES=$(LOCK_BYTES) sh $(SQLITE_SUITE)/library.sh $(SQLITE_SRC)/installed $(SQLITE_LIB)
	$(Q)LD_LIBRARY_PATH=$(SQLITE_LIB) PATH=$(SQLITE_LIB):$$PATH TDE_LOCK_BYTES=$(LOCK_BYTES) \
	  sh tests/check.sh $(BUILD)/check $(TCL_SUITE)
