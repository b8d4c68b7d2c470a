export OPENCODE_CONFIG=/nix/store/@system@-opencode.json

exec /nix/store/@system@-opencode/bin/opencode "$@"
