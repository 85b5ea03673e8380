/*
** tree.h: removes the directory that a unit test worked in.
*/
#ifndef TDE_TESTS_UNIT_TREE_H
#define TDE_TESTS_UNIT_TREE_H

#include <ftw.h>
#include <stdio.h>

static int tree_remove_one(const char *path, const struct stat *sb, int type, struct FTW *ftw) {
  (void)sb, (void)type, (void)ftw;
  return remove(path);
}

/* With all that is in it; links are not followed. */
static void remove_tree(const char *dir) {
  (void)nftw(dir, tree_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

#endif
