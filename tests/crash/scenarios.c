/*
** scenarios.c: what is run on the simulated disk. Letters: run.h.
**
** slack: with a deleted journal and synchronous=FULL the deletion itself is not
** synced, so the last transaction may be undone (EXTRA syncs it); a WAL with
** synchronous=NORMAL is not synced at commit. Both are SQLite's own contract.
** death: what was written stays, as with kill -9, but at a chosen operation; with
** synchronous=OFF every transaction must be there.
*/
#include "run.h"

#define ANY 0

const scenario scenarios[] = {
    /* name, journal, sync, page, cache, autockpt, autovac, attach, slack, exclusive, tde_only,
    ** first, mix, steps, create_safe, death */
    {"delete", "delete", "EXTRA", 4096, 100, 1000, 0, 0, 0, 0, 0, "", "tttbrsdx", 14, 0, 0},
    {"delete-full", "delete", "FULL", ANY, 100, 1000, 0, 0, 1, 0, 0, "", "tttbrsdx", 14, 0, 0},
    {"truncate", "truncate", "FULL", ANY, 100, 1000, 0, 0, 0, 0, 0, "", "tttbrsdx", 14, 0, 0},
    {"persist", "persist", "FULL", ANY, 100, 1000, 0, 0, 0, 0, 0, "", "tttbrsdx", 14, 0, 0},
    {"journal-spill", "any", "EXTRA", ANY, 5, 1000, 0, 0, 0, 0, 0, "", "tbbbrss", 9, 0, 0},
    {"wal-auto", "wal", "FULL", 4096, 100, 20, 0, 0, 0, 0, 0, "", "tttbrsdx", 20, 0, 0},
    {"wal-pages", "wal", "FULL", ANY, 100, 30, 0, 0, 0, 0, 0, "", "tttbrsdx", 16, 0, 0},
    {"wal-manual", "wal", "FULL", 4096, 100, 0, 0, 0, 0, 0, 0, "", "ttttbrsPFRTox", 24, 0, 0},
    {"wal-normal", "wal", "NORMAL", ANY, 100, 25, 0, 0, 1000, 0, 0, "", "ttttbrsPRTx", 20, 0, 0},
    {"wal-spill", "wal", "FULL", ANY, 5, 60, 0, 0, 0, 0, 0, "", "tbbrssssPT", 10, 0, 0},
    {"attach", "any", "EXTRA", 4096, 50, 1000, 0, 1, 0, 0, 0, "", "tttbrsd", 9, 0, 0},
    {"attach-plain", "any", "EXTRA", 1024, 50, 1000, 0, 2, 0, 0, 0, "", "tttbrs", 8, 0, 0},
    {"vacuum", "any", "EXTRA", ANY, 50, 1000, 0, 0, 0, 0, 0, "b", "tdvvbv", 8, 0, 0},
    {"vacuum-wal", "wal", "FULL", ANY, 50, 100, 0, 0, 0, 0, 0, "b", "tdvvbT", 8, 0, 0},
    {"page-size", "any", "EXTRA", 4096, 50, 1000, 0, 0, 0, 0, 0, "b", "tpptbrsd", 10, 0, 0},
    {"small-pages", "any", "EXTRA", 4096, 50, 1000, 0, 0, 0, 0, 0, "bq", "ttttbrsdx", 12, 1, 0},
    {"small-spill", "any", "EXTRA", 4096, 5, 1000, 0, 0, 0, 0, 0, "bq", "ttbrsd", 9, 1, 0},
    {"small-wal", "wal", "FULL", 4096, 50, 25, 0, 0, 0, 0, 0, "bkqj", "ttttbrsPFRTx", 16, 1, 0},
    {"incremental", "any", "EXTRA", ANY, 50, 1000, 2, 0, 0, 0, 0, "b", "tdiibd", 12, 0, 0},
    {"auto-vacuum", "any", "EXTRA", ANY, 50, 1000, 1, 0, 0, 0, 0, "b", "tddbr", 12, 0, 0},
    {"maps", "any", "EXTRA", ANY, 5, 1000, 1, 0, 0, 0, 0, "bM", "tMddbvrx", 12, 0, 0},
    {"maps-wal", "wal", "FULL", ANY, 5, 30, 1, 0, 0, 0, 0, "bM", "ttMddbvPTox", 14, 0, 0},
    {"exclusive", "any", "EXTRA", ANY, 20, 1000, 0, 0, 0, 1, 0, "", "tttbrsd", 12, 0, 0},
    {"exclusive-wal", "wal", "FULL", ANY, 20, 30, 0, 0, 0, 1, 0, "", "tttbrsPT", 12, 0, 0},
    {"restore", "any", "EXTRA", ANY, 50, 1000, 0, 0, 0, 0, 0, "b", "tBBb", 6, 0, 0},
    {"restore-wal", "wal", "FULL", ANY, 50, 40, 0, 0, 0, 0, 0, "b", "tBBbT", 6, 0, 0},
    {"death-delete", "delete", "OFF", ANY, 100, 1000, 0, 0, 0, 0, 0, "", "tttbrsd", 14, 0, 1},
    {"death-persist", "persist", "OFF", ANY, 100, 1000, 0, 0, 0, 0, 0, "", "tttbrsd", 14, 0, 1},
    {"death-spill", "any", "OFF", 4096, 5, 1000, 0, 0, 0, 0, 0, "", "tbbrs", 9, 0, 1},
    {"death-wal", "wal", "OFF", ANY, 100, 30, 0, 0, 0, 0, 0, "", "tttbrsdPT", 16, 0, 1},
    {"death-wal-spill", "wal", "OFF", 4096, 5, 30, 0, 0, 0, 0, 0, "", "tbbrsPT", 9, 0, 1},
    {"death-small", "any", "OFF", 4096, 50, 1000, 0, 0, 0, 0, 0, "bq", "tttbrsdx", 12, 1, 1},
    {"death-attach", "any", "NORMAL", 4096, 50, 1000, 0, 1, 0, 0, 0, "", "tttbrsd", 9, 0, 1},
    {"modes", "any", "EXTRA", ANY, 50, 30, 0, 0, 0, 0, 0, "", "ttwtjwjx", 16, 0, 0},
    {"create", "any", "EXTRA", ANY, 100, 1000, 0, 0, 0, 0, 0, "", "t", 1, 0, 0},
    {"create-wal", "wal", "FULL", ANY, 100, 1000, 0, 0, 0, 0, 0, "", "t", 1, 0, 0},
    {"header", "any", "EXTRA", 4096, 100, 1000, 0, 0, 0, 0, 1, "tt", "hht", 6, 1, 0},
    {"header-wal", "wal", "FULL", 4096, 100, 1000, 0, 0, 0, 0, 1, "tt", "hht", 6, 1, 0},
    {"protector", "any", "EXTRA", 4096, 100, 1000, 0, 0, 0, 0, 1, "tt", "mmt", 6, 1, 0},
    {"protector-wal", "wal", "FULL", 4096, 100, 1000, 0, 0, 0, 0, 1, "tt", "mmtT", 8, 1, 0},
    {"dek", "any", "EXTRA", ANY, 50, 1000, 0, 0, 0, 0, 1, "bt", "gtdgx", 5, 1, 0},
    {"dek-wal", "wal", "FULL", ANY, 50, 30, 0, 0, 0, 0, 1, "bt", "gttPTgx", 6, 1, 0},
    {"dek-small", "any", "EXTRA", 4096, 50, 1000, 0, 0, 0, 0, 1, "bq", "gttx", 5, 1, 0},
    {"dek-protector", "any", "EXTRA", 4096, 50, 1000, 0, 0, 0, 0, 1, "bt", "gmgt", 5, 1, 0},
    {"death-dek", "any", "OFF", ANY, 50, 1000, 0, 0, 0, 0, 1, "bt", "gtd", 5, 1, 1},
    {"death-dek-wal", "wal", "OFF", ANY, 50, 30, 0, 0, 0, 0, 1, "bt", "gttT", 5, 1, 1},
    {"secondary", "any", "EXTRA", ANY, 50, 1000, 0, 0, 0, 0, 1, "bty", "tydyb", 7, 1, 0},
    {"secondary-wal", "wal", "FULL", ANY, 50, 40, 0, 0, 0, 0, 1, "bty", "tydyPm", 7, 1, 0},
    {"backup", "any", "EXTRA", ANY, 50, 1000, 0, 0, 0, 0, 1, "bt", "C", 1, 1, 0},
    {"backup-wal", "wal", "FULL", ANY, 50, 1000, 0, 0, 0, 0, 1, "bt", "C", 1, 1, 0},
    {"copy", "any", "EXTRA", ANY, 50, 1000, 0, 0, 0, 0, 1, "bt", "Y", 1, 1, 0},
    {"new-secondary", "wal", "FULL", ANY, 50, 1000, 0, 0, 0, 0, 1, "bt", "Z", 1, 1, 0},
    {"restore-to", "any", "EXTRA", ANY, 50, 1000, 0, 0, 0, 0, 1, "btAt", "D", 1, 1, 0},
    {"encrypt", "any", "EXTRA", ANY, 100, 1000, 0, 0, 0, 0, 1, "bt", "E", 1, 1, 0},
    {"encrypt-wal", "wal", "FULL", ANY, 100, 1000, 0, 0, 0, 0, 1, "bt", "E", 1, 1, 0},
    {"encrypt-to", "any", "EXTRA", ANY, 100, 1000, 0, 0, 0, 0, 1, "bt", "O", 1, 1, 0},
    {"decrypt-to", "any", "EXTRA", ANY, 100, 1000, 0, 0, 0, 0, 1, "bt", "U", 1, 1, 0},
};
const int nscenarios = (int)(sizeof(scenarios) / sizeof(scenarios[0]));
