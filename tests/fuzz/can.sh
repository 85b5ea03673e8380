#!/bin/sh
# can.sh CLANG: whether this compiler builds libFuzzer programs; silent. Exit 0: yes.
command -v "$1" >/dev/null 2>&1 || exit 1
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
echo 'int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n);
int LLVMFuzzerTestOneInput(const unsigned char *p, unsigned long n) { return n && p[0] ? 0 : 0; }' >"$dir/a.c"
"$1" -fsanitize=fuzzer,address,undefined -o "$dir/a" "$dir/a.c" >/dev/null 2>&1
