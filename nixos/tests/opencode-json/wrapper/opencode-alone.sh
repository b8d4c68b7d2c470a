export OPENCODE_CONFIG=/nix/store/@system@-opencode.json
export OPENCODE_DISABLE_PROJECT_CONFIG=1
exec /nix/store/@system@-opencode/bin/opencode "$@"
