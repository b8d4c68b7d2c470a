# One server, which reaches its model, GitHub, the packages of npm, some names more, and a local network.
{ config, pkgs, ... }:
{
  networking.nftables.enable = true;
  networking.firewall.enable = false;

  services.opencode = {
    enable = true;
    instances.my-project = {
      directory = "/srv/my-project";
      environmentFile = "/run/secrets/opencode-my-project";
      path = config.services.opencode.defaults.path ++ [ pkgs.nodejs ];
      config.model = "anthropic/claude-sonnet-4-5";
      networkIsolation = {
        enable = true;
        presets = [
          "anthropic"
          "github"
          "npm"
        ];
        outboundAllowNames = [
          "docs.example.org"
          "*.example.net"
        ];
        outboundAllow = [
          {
            name = "git.example.org";
            ports = [
              22
              443
            ];
          }
          {
            cidr = "10.10.0.0/16";
            protocol = "tcp";
            ports = [
              443
              5432
            ];
          }
        ];
      };
    };
  };
}
