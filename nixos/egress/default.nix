# What holds instances to their policies: the policy file, the daemon that enforces it, the resolver of names, and nftables as a second lock.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (config.services.opencode) egress;
  instances = import ../instances.nix { inherit config lib; };
  keyed = import ../keys/keyed.nix { inherit config lib; };
  policy = builtins.toJSON (import ./policy.nix { inherit config lib; });

  # What the daemon would refuse, the build refuses, where the machine that builds can run the daemon. Where it cannot, the daemon refuses
  # it when it starts.
  checked = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
  policyFile = pkgs.runCommand "opencode-egress-policy.json" {
    inherit policy;
    passAsFile = [ "policy" ];
  } ''
    ${lib.optionalString checked ''${lib.getExe' egress.package "opencode-egress"} check "$policyPath"''}
    cp "$policyPath" "$out"
  '';

  nftables = import ./nftables.nix { inherit config lib; };

  # Ports are part of the instances' own policies too; without one, it is the firewall that keeps them closed.
  openPorts = lib.mapAttrsToList (_: instance: instance.listen.port) (
    lib.filterAttrs (_: instance: instance.openFirewall) instances.enabled
  );
in
{
  config = lib.mkMerge [
    { networking.firewall.allowedTCPPorts = lib.unique openPorts; }
    # Instances under a policy; what has their keys is one, too.
    (lib.mkIf (instances.isolated != { } || keyed.exists) {
      environment.etc."opencode-egress/policy.json".source = policyFile;
      environment.etc.${instances.attachEtcName}.source = "${egress.package}/bin/opencode-egress";
      environment.systemPackages = [ egress.package ];
      systemd.services.opencode-egress = import ./daemon.nix { inherit lib egress policyFile; };
      systemd.services.opencode-egress-resolver = import ./resolver.nix { inherit lib egress; };
    })
    (lib.mkIf (instances.isolated != { }) {
      networking.nftables.tables.opencode-egress = {
        family = "inet";
        content = nftables.content;
      };
      networking.nftables.preCheckRuleset = nftables.preCheck;
    })
  ];
}
