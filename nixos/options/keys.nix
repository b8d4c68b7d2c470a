# What has the instances' `providers`.
{ lib, ... }:
let
  inherit (import ../types.nix { inherit lib; }) hostPath;
in
{
  options.services.opencode.keys.textfile = lib.mkOption {
    type = lib.types.nullOr hostPath;
    default = null;
    example = "/var/lib/prometheus-node-exporter/opencode-keys.prom";
    description = ''
      File of counters for the textfile collector of node_exporter: requests by status, bytes and seconds, of each instance and provider that {option}`opencode-keys.service` has had. Its directory
      must exist. It is written anew every 15 seconds, from the lines of the journal.
    '';
  };
}
