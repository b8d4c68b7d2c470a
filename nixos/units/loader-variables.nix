# Environment variables by which the dynamic linker and the C library load code, or write files, of somebody's choice
# (ld.so(8)). `attach` is root's and has the unit's environment: with one of these it would be whoever can write there.
[
  "GCONV_PATH"
  "GETCONF_DIR"
  "GLIBC_TUNABLES"
  "LD_AUDIT"
  "LD_DEBUG"
  "LD_DEBUG_OUTPUT"
  "LD_DYNAMIC_WEAK"
  "LD_LIBRARY_PATH"
  "LD_ORIGIN_PATH"
  "LD_PRELOAD"
  "LD_PREFER_MAP_32BIT_EXEC"
  "LD_PROFILE"
  "LD_PROFILE_OUTPUT"
  "LD_SHOW_AUXV"
  "LOCPATH"
  "MALLOC_TRACE"
  "NLSPATH"
]
