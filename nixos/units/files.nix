# An instance's declared files, as one directory in the store: opencode.json, agents/, commands/, skills/.
{ lib, pkgs }:
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
            pkgs.writeText "opencode-${name}.json" (opencodeJson.render instance.config);
      }
    ]
    ++ projected "agents"
    ++ projected "commands"
    ++ projected "skills";

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
