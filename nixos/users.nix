# Users and groups of instances that did not say otherwise.
{ config, lib, ... }:
let
  inherit (lib) concatMapAttrs optionalAttrs;
  instances = import ./instances.nix { inherit config lib; };
in
{
  users.users = concatMapAttrs (
    name: instance:
    optionalAttrs (instances.ownsUser name instance) {
      ${instance.user} = {
        isSystemUser = true;
        inherit (instance) group;
        home = instance.stateDir;
        description = "opencode server, instance ${name}";
      };
    }
  ) instances.enabled;

  users.groups = concatMapAttrs (
    name: instance: optionalAttrs (instances.ownsGroup name instance) { ${instance.group} = { }; }
  ) instances.enabled;
}
