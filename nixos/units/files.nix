# An instance's declared files, as one directory in the store: opencode.json, agents/, commands/, skills/; and what its variables name.
{
  lib,
  pkgs,
  instances,
}:
let
  inherit (lib) filter mapAttrsToList;
  opencodeJson = import ../opencode-json { inherit lib; };

  # Text becomes a file. A path in quotes stays where it is; one without, and a package, is in the store.
  source =
    fileName: value:
    if lib.isString value && !lib.hasPrefix "/" value || lib.hasInfix "\n" (toString value) then
      pkgs.writeText fileName value
    else
      "${value}";

  # What the agent is told of its policy comes after the operator's own instructions.
  configOf =
    name: instance:
    instance.config
    // lib.optionalAttrs (instances.tells instance) {
      instructions = lib.defaultTo [ ] instance.config.instructions ++ [ (instances.told name) ];
    };

  entries =
    name: instance:
    let
      projected =
        kind:
        mapAttrsToList (key: value: {
          name = "${kind}/${key}";
          path = source "opencode-${name}-${kind}-${key}" value;
        }) instance.${kind};
    in
    [
      {
        name = "opencode.json";
        path =
          if instance.configFile != null then
            "${instance.configFile}"
          else
            pkgs.writeText "opencode-${name}.json" (opencodeJson.render (configOf name instance));
      }
    ]
    ++ projected "agents"
    ++ projected "commands"
    ++ projected "skills"
    ++ lib.optional (instances.failsFast instance) {
      name = "wgetrc";
      path = pkgs.writeText "wgetrc" "tries = 1\n";
    };

  inStore = path: !lib.isString path || lib.hasPrefix "${builtins.storeDir}/" path;
in
name: instance:
let
  all = entries name instance;
in
{
  package = pkgs.linkFarm "opencode-${name}-files" all;
  # Paths that it points to outside the store.
  outside = filter (path: !inStore path) (map (entry: entry.path) all);
}
