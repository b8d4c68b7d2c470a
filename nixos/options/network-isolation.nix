# What a server may reach.
{ lib, ... }:
let
  inherit (lib) mkEnableOption mkOption types;
  inherit (import ../types.nix { inherit lib; }) cidr portRange;

  rule = types.submodule {
    options = {
      cidr = mkOption {
        type = cidr;
        example = "203.0.113.0/24";
        description = "Network.";
      };
      protocol = mkOption {
        type = types.enum [
          "tcp"
          "udp"
          "icmp"
          "any"
        ];
        default = "any";
        description = "Protocol. `any` with ports is TCP and UDP. `icmp` is ICMPv6 for IPv6 networks, and has no ports.";
      };
      ports = mkOption {
        type = types.listOf portRange;
        default = [ ];
        example = [
          443
          "8000-8100"
        ];
        description = "Ports and ranges of ports; none means all.";
      };
    };
  };
in
{
  options.networkIsolation = {
    enable = mkEnableOption ''
      an egress policy for this instance. It then reaches the networks listed here and no others, loopback included, from its first
      instruction to its last, and does not start when that cannot be made sure. **Without it the agent reaches whatever this host
      reaches.** Needs {option}`networking.nftables.enable`, and {option}`networking.firewall.enable` to be off or
      {option}`services.opencode.egress.besideFirewall` to be on
    '';

    mode = mkOption {
      type = types.enum [
        "enforce"
        "audit"
      ];
      default = "enforce";
      description = "`audit` reports what would be denied and **lets it pass**: for finding out what a new instance needs.";
    };

    outboundAllowCidrs = mkOption {
      type = types.listOf cidr;
      default = [ ];
      example = [
        "10.10.0.0/16"
        "2001:db8::/32"
      ];
      description = ''
        Networks that the instance may reach, by any protocol and port. Nothing is allowed by itself: list the resolver too, also one on
        loopback such as `127.0.0.53/32`. `0.0.0.0/0` and `::/0` are everything there is of a family.
      '';
    };

    outboundDenyCidrs = mkOption {
      type = types.listOf cidr;
      default = [ ];
      example = [ "10.10.9.0/24" ];
      description = "Networks that it may not reach, whatever else is allowed.";
    };

    outboundAllow = mkOption {
      type = types.listOf rule;
      default = [ ];
      example = [
        {
          cidr = "203.0.113.0/24";
          protocol = "tcp";
          ports = [ 443 ];
        }
      ];
      description = "The same as {option}`outboundAllowCidrs`, for some protocols and ports.";
    };
  };
}
