/*
** codes.c: the shim's states and the product's classes, in the words of people and of SQLite.
*/
#include "tdevfs.h"

SQLITE_EXTENSION_INIT3

const char *tde_state_name(tde_state s) {
  switch (s) {
    case TDE_STATE_NEW:
      return "New";
    case TDE_STATE_ONLINE:
      return "Online";
    case TDE_STATE_INACCESSIBLE:
      return "Inaccessible";
    case TDE_STATE_NOT_ENCRYPTED:
      return "NotEncrypted";
    case TDE_STATE_PLAIN:
      return "Plain";
    case TDE_STATE_NEWER_FORMAT:
      return "NewerFormat";
    case TDE_STATE_DAMAGED:
      return "DamagedHeader";
  }
  return "Unknown";
}

int tde_class_rc(tde_class c) {
  switch (c) {
    case TDE_OK:
      return SQLITE_OK;
    case TDE_NOMEM:
      return SQLITE_NOMEM;
    case TDE_BUSY:
      return SQLITE_BUSY;
    case TDE_MISUSE:
      return SQLITE_MISUSE;
    case TDE_NOT_ENCRYPTED:
    case TDE_DAMAGED_HEADER:
      return SQLITE_NOTADB;
    case TDE_NEWER_FORMAT:
      return SQLITE_CANTOPEN;
    case TDE_TAMPERED:
      return SQLITE_IOERR_DATA;
    case TDE_TORN:
      return SQLITE_IOERR_READ;
    case TDE_TRUNCATED:
      return SQLITE_IOERR_CORRUPTFS; /* SQLite's VDBE makes SQLITE_CORRUPT of it */
    case TDE_NOT_AUTHENTIC:
    case TDE_WRONG_KEY:
    case TDE_CORRUPT:
    case TDE_UNREACHABLE:
    case TDE_THROTTLED:
    case TDE_UNAUTHENTICATED:
    case TDE_DENIED:
    case TDE_DISABLED:
    case TDE_MISSING:
    case TDE_UNSUPPORTED:
    case TDE_MISCONFIGURED:
      return SQLITE_IOERR_AUTH;
    default:
      return SQLITE_IOERR;
  }
}
