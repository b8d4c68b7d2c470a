# From typed options to opencode.json: one way, for the NixOS module and for the overlay's helpers.
#
# `writeText` makes the file; nixpkgs' own takes configurations that name packages, builtins.toFile does without nixpkgs.
{
  lib,
  writeText ? builtins.toFile,
}:
let
  inherit (lib) mapAttrs mkOption types;
  json = import ./json.nix { inherit lib; };
  permission = import ./permission.nix { inherit lib json; };

  # What opencode.json may hold.
  module = {
    freeformType = types.attrsOf (import ./types.nix { inherit lib; }).unknown;
    options = import ./options.nix { inherit lib permission; };
  };

  # A permission stands at the top and at each agent.
  inOrder = config: config // { permission = permission.render (config.permission or null); };
  agents =
    set:
    if set == null then
      null
    else
      mapAttrs (
        _: agent:
        inOrder agent
        // {
          mode = if agent.mode == null && agent.primary == true then "primary" else agent.mode;
          primary = null;
        }
      ) set;

  # Keys may stand below `opencode`, as in modules that are written for the option of that name.
  evaluate =
    modules:
    let
      below.options.opencode = mkOption {
        type = types.deferredModule;
        default = { };
      };
      config =
        more:
        (lib.evalModules {
          prefix = [ "opencode" ];
          modules = [
            module
            below
          ]
          ++ modules
          ++ more;
        }).config;
    in
    removeAttrs (config [ (config [ ]).opencode ]) [ "opencode" ];
in
rec {
  # The type of a configuration. An option of this type is an instance's.
  configType = types.submodule module;

  # The text of opencode.json for a value of `configType`.
  render =
    config:
    json.toOrderedJSON (
      inOrder config
      // {
        agent = agents config.agent;
        mode = agents config.mode;
      }
    );

  # The text of opencode.json for attributes, a module, or a list of these, which are merged.
  mkConfigFromAttrs = modules: render (evaluate (lib.toList modules));

  # The same as a file.
  mkConfig = modules: writeText "opencode.json" (mkConfigFromAttrs modules);

  # The names that albertov/opencode-nix has for it.
  mkOpenCodeConfig = mkConfig;
  mkOpenCodeConfigFromAttrs = mkConfig;

  # The parts, for the module's warnings and the tests.
  inherit json permission;
}
