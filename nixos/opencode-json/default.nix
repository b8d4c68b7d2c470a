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

  # A permission stands at the top and at each agent.
  inOrder = config: config // { permission = permission.render (config.permission or null); };
  orderedAgents = agents: if agents == null then null else mapAttrs (_: inOrder) agents;
in
rec {
  # The type of a configuration: what opencode.json may hold. An option of this type is an instance's.
  configType = types.submodule {
    freeformType = types.attrsOf (import ./types.nix { inherit lib; }).unknown;
    options = import ./options.nix { inherit lib permission; };
  };

  # The text of opencode.json for a value of `configType`.
  render =
    config:
    json.toOrderedJSON (
      inOrder config
      // {
        agent = orderedAgents config.agent;
        mode = orderedAgents config.mode;
      }
    );

  # The text of opencode.json for attributes, or a module.
  mkConfigFromAttrs =
    module:
    render
      (lib.evalModules {
        modules = [
          { options.opencode = mkOption { type = configType; }; }
          { opencode = module; }
        ];
      }).config.opencode;

  # The same as a file.
  mkConfig = module: writeText "opencode.json" (mkConfigFromAttrs module);

  # The parts, for the tests.
  inherit json permission;
}
