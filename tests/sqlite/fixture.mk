# Builds SQLite's test program twice: plain, and with the shim linked in as the
# default VFS. Both come from the same objects and differ in the linked hook
# alone, so that a difference in a test's outcome is the shim's.
#
# Run in a folder that SQLite's configure has filled, after SQLite's own
# Makefile, whose variables name the sources and flags:
#
#     make -C OUT -f Makefile -f PRODUCT/tests/sqlite/fixture.mk PRODUCT=... suite
#
# Nothing is written outside OUT.

ifndef PRODUCT
$(error PRODUCT must name the top folder of the extension's source)
endif
HERE := $(PRODUCT)/tests/sqlite

# Older releases of SQLite call the compiler line TCC, newer ones T.cc.sqlite.
SUITE_CC = $(or $(T.cc.sqlite),$(TCC)) $(TEMP_STORE)
SUITE_HOOK = -DSQLITE_EXTRA_INIT=suite_sqlite_init
SUITE_FLAGS = $(filter-out -DTCLSH_INIT_PROC=%,$(TESTFIXTURE_FLAGS)) \
              -DTCLSH_INIT_PROC=suite_tcl_init -DSQLITE_NO_SYNC=1 $(SUITE_HOOK)
SUITE_TCL_CONFIG := $(firstword $(wildcard /usr/lib/*/tcl8.6/tclConfig.sh /usr/lib/tcl8.6/tclConfig.sh))
tcl_setting = $(shell . $(SUITE_TCL_CONFIG) && echo "$$$(1)")
SUITE_TCL_INC := $(call tcl_setting,TCL_INCLUDE_SPEC)
SUITE_TCL_LIB := $(call tcl_setting,TCL_LIB_SPEC) $(call tcl_setting,TCL_LIBS)
SUITE_LIBS := $(SUITE_TCL_LIB) -lz -lm -ldl -lpthread $(EXTRA_LDFLAGS)
SHELL_FLAGS := -DSQLITE_ENABLE_EXPLAIN_COMMENTS -DSQLITE_ENABLE_UNKNOWN_SQL_FUNCTION \
               -DSQLITE_ENABLE_STMTVTAB -DSQLITE_ENABLE_DBPAGE_VTAB -DSQLITE_ENABLE_DBSTAT_VTAB \
               -DSQLITE_ENABLE_BYTECODE_VTAB -DSQLITE_ENABLE_OFFSET_SQL_FUNC $(SUITE_HOOK)

.DEFAULT_GOAL := suite
.PHONY: suite suite-plain suite-tde
suite-plain: plain/testfixture plain/sqlite3
suite-tde: tde/testfixture tde/sqlite3
suite: suite-plain suite-tde

# One object a source, so that a change of the shim costs a link.
suite_obj = fixture-obj/$(notdir $(basename $(1))).o
SUITE_OBJ := $(foreach s,$(TESTFIXTURE_SRC),$(call suite_obj,$(s)))
define suite_rule
$(call suite_obj,$(1)): $(1) sqlite3.c
	@mkdir -p $$(@D)
	$$(SUITE_CC) $$(EXTRA_CFLAGS) $$(SUITE_FLAGS) $$(SUITE_TCL_INC) -w -c $$< -o $$@
endef
$(foreach s,$(sort $(TESTFIXTURE_SRC)),$(eval $(call suite_rule,$(s))))

shell-obj/sqlite3.o: sqlite3.c
	@mkdir -p $(@D)
	$(SUITE_CC) $(EXTRA_CFLAGS) $(SHELL_FLAGS) -w -c $< -o $@
shell-obj/shell.o: shell.c sqlite3.c
	@mkdir -p $(@D)
	$(SUITE_CC) $(EXTRA_CFLAGS) $(SHELL_FLAGS) -w -c $< -o $@

# The product's C files, calling the library they are linked with.
TDE_SRC := $(wildcard $(addprefix $(PRODUCT)/,ext/base/*.c vfs/*.c keyprovider/*.c sql/*.c ext/*.c))
TDE_OBJ := $(TDE_SRC:$(PRODUCT)/%.c=tde-obj/%.o)
TDE_LIBS := -lcrypto -lcurl -ljansson
HOOK_CFLAGS := -std=gnu11 -Wall -Wextra -Werror -Wshadow -Wpointer-arith -Wstrict-prototypes \
               -Wmissing-prototypes -Wundef -O2 -g -D_GNU_SOURCE -DSQLITE_CORE=1 -I. $(EXTRA_CFLAGS)

tde-obj/%.o: $(PRODUCT)/%.c sqlite3.c
	@mkdir -p $(@D)
	$(CC) $(HOOK_CFLAGS) -MMD -MP -c $< -o $@
-include $(TDE_OBJ:.o=.d)

hook-obj/plain-%.o: $(HERE)/%.c sqlite3.c $(wildcard $(HERE)/*.h)
	@mkdir -p $(@D)
	$(CC) $(HOOK_CFLAGS) -DSUITE_TDE=0 -DSUITE_LIVE=0 $(SUITE_TCL_INC) -c $< -o $@
hook-obj/tde-%.o: $(HERE)/%.c sqlite3.c $(wildcard $(HERE)/*.h $(PRODUCT)/ext/*.h $(PRODUCT)/vfs/*.h)
	@mkdir -p $(@D)
	$(CC) $(HOOK_CFLAGS) -DSUITE_TDE=1 -DSUITE_LIVE=0 -I$(PRODUCT) $(SUITE_TCL_INC) -c $< -o $@

# Tests of the Tcl program see the same bytes as SQLite; the shell's do not look.
hook-obj/live-hook.o: $(HERE)/hook.c sqlite3.c $(wildcard $(HERE)/*.h $(PRODUCT)/ext/*.h)
	@mkdir -p $(@D)
	$(CC) $(HOOK_CFLAGS) -DSUITE_TDE=1 -DSUITE_LIVE=1 -I$(PRODUCT) -c $< -o $@

plain/testfixture: $(SUITE_OBJ) hook-obj/plain-hook.o hook-obj/plain-tclhook.o
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(SUITE_LIBS)
tde/testfixture: $(SUITE_OBJ) hook-obj/live-hook.o hook-obj/tde-live.o hook-obj/tde-tclhook.o hook-obj/tde-logical.o $(TDE_OBJ)
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(TDE_LIBS) $(SUITE_LIBS)
plain/sqlite3: shell-obj/shell.o shell-obj/sqlite3.o hook-obj/plain-hook.o
	@mkdir -p $(@D)
	$(CC) -o $@ $^ -lz -lm -ldl -lpthread $(EXTRA_LDFLAGS)
tde/sqlite3: shell-obj/shell.o shell-obj/sqlite3.o hook-obj/tde-hook.o $(TDE_OBJ)
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(TDE_LIBS) -lz -lm -ldl -lpthread $(EXTRA_LDFLAGS)
