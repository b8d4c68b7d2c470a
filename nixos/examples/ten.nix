# Ten servers from a list: what they have in common is in `defaults`, and each has a port and a network of its own.
{ lib, pkgs, ... }:
let
  inherit (lib) imap0 listToAttrs nameValuePair;
  projects = [
    "atlas"
    "beacon"
    "cedar"
    "delta"
    "ember"
    "fjord"
    "grove"
    "harbor"
    "iris"
    "juniper"
  ];
in
{
  networking.nftables.enable = true;
  networking.firewall.enable = false;

  services.opencode = {
    enable = true;

    defaults = {
      logLevel = "WARN";
      environmentFile = "/run/secrets/opencode";
      path = [
        pkgs.bash
        pkgs.git
        pkgs.nodejs
        pkgs.ripgrep
      ];
      resources = {
        memoryMax = "4G";
        cpuQuota = "200%";
        tasksMax = 512;
      };
      config = {
        model = "anthropic/claude-sonnet-4-5";
        share = "disabled";
      };
      agents.reviewer = ''
        ---
        description: Reviews a change
        mode: subagent
        ---
        Read the diff. Say what is wrong with it, and nothing else.
      '';
      networkIsolation = {
        enable = true;
        # The model's provider.
        presets = [ "anthropic" ];
      };
    };

    instances = listToAttrs (
      imap0 (
        index: name:
        nameValuePair name {
          directory = "/srv/${name}";
          listen.port = 4100 + index;
          networkIsolation.outboundAllow = [
            {
              cidr = "10.20.${toString index}.0/24";
              protocol = "tcp";
              ports = [ 443 ];
            }
          ];
        }
      ) projects
    );
  };
}
