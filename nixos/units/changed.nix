# What leads round the policy in the unit of an isolated instance as it is in the end, when `systemd.services` says more of it than this module does:
# a message for each. `own` is what the module says, and `otherwise` what else there is to be done.
{
  config,
  lib,
  otherwise ? "or turn `networkIsolation.enable` of the instance off",
}:
let
  instances = import ../instances.nix { inherit config lib; };
  leadsRound = import ../leads-round.nix { inherit lib instances; };
  kept = import ./kept-settings.nix;
in
unit: own:
let
  final = config.systemd.services.${unit}.serviceConfig;
  list = value: map toString (lib.toList (value.content or value));
  had = key: list (own.serviceConfig.${key} or [ ]);

  startsAsOwn = lib.take (lib.length (had "ExecStartPre")) (list final.ExecStartPre) == had "ExecStartPre";
  added = lib.mapAttrs (key: value: lib.subtractLists (had key) (list value)) final;
  # Of a setting that is kept, whatever is not as it was; of others, what was added.
  changed =
    key: value:
    if key == "ExecStartPre" then
      !startsAsOwn
    else if lib.elem key kept then
      list value != had key
    else
      added.${key} != [ ];

  place = "systemd.services.${unit}.serviceConfig";
  settings = lib.mapAttrs (key: _: added.${key}) (lib.filterAttrs changed final);
  sockets = lib.filter (socket: socket.owner != null) (
    import ../sockets.nix { inherit lib; } {
      readWritePaths = [ ];
      readOnlyPaths = [ ];
      unixSockets.allow = [ ];
      extraConfig = settings;
    }
  );
in
leadsRound {
  inherit place settings otherwise;
  # These run after the policy is attached.
  commands = lib.optionalAttrs startsAsOwn { inherit (added) ExecStartPre; };
}
++ map (
  socket:
  "${place}.${lib.removePrefix "sandbox.extraConfig." socket.setting}: through ${socket.path} the agent can have ${socket.owner} reach any network, and the instance's policy would see none of it. Remove it, ${otherwise}."
) sockets
