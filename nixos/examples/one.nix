# One server, which reaches its model, its resolver and one host on the local network.
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
        outboundAllowCidrs = [
          "127.0.0.53/32"
          "10.10.0.0/16"
        ];
        outboundAllow = [
          {
            cidr = "160.79.104.0/23";
            protocol = "tcp";
            ports = [ 443 ];
          }
        ];
      };
    };
  };
}
