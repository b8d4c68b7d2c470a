#!/bin/sh
# rustc, as cargo calls it for the workspace's own crates: with the coverage that libFuzzer follows. What they use is
# built as always, so that fuzzing costs no second build of it. Build scripts are programs without a fuzzer in them.
case " $* " in
*" --crate-name build_script_build "* | *" --crate-name ___ "*) exec "$@" ;;
esac
exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
