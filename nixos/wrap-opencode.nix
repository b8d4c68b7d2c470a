# An `opencode` that starts with a configuration of one's own:
#
#   lib.opencode.wrapOpencode { config.model = "local/large"; }
#
# `config` is what mkConfig takes. It goes before what is in the user's home directory. A worktree's own opencode.json goes
# before it, unless `projectConfig` is false: then only what is outside the worktree counts.
pkgs:
{
  config,
  package ? pkgs.opencode,
  projectConfig ? true,
  # The program's.
  name ? "opencode",
}:
let
  inherit (pkgs) lib;
in
pkgs.symlinkJoin {
  inherit name;
  # Of two files of one name the first is taken. The package's others, such as completions, stay.
  paths = [
    (pkgs.writeShellScriptBin name ''
      export OPENCODE_CONFIG=${lib.opencode.mkConfig config}
      ${lib.optionalString (!projectConfig) "export OPENCODE_DISABLE_PROJECT_CONFIG=1"}
      exec ${lib.getExe' package "opencode"} "$@"
    '')
    package
  ];
  # It would start without the configuration.
  postBuild = lib.optionalString (name != "opencode") "rm $out/bin/opencode";
  meta.mainProgram = name;
}
