# An `opencode` that starts with a configuration of one's own:
#
#   lib.opencode.wrapOpencode { config.model = "local/large"; }
#
# It goes before what is in the user's home directory. A worktree's own opencode.json goes before it, unless
# `projectConfig` is false: then only what is outside the worktree counts.
pkgs:
{
  config,
  package ? pkgs.opencode,
  projectConfig ? true,
}:
let
  inherit (pkgs) lib;
in
pkgs.writeShellScriptBin "opencode" ''
  export OPENCODE_CONFIG=${lib.opencode.mkConfig config}
  ${lib.optionalString (!projectConfig) "export OPENCODE_DISABLE_PROJECT_CONFIG=1"}
  exec ${lib.getExe' package "opencode"} "$@"
''
