# What a server may reach.
{ lib, ... }:
let
  inherit (lib) mkEnableOption mkOption types;
  inherit (import ../types.nix { inherit lib; })
    cidr
    dnsName
    portRange
    presetName
    presets
    ;

  rule = types.submodule {
    options = {
      cidr = mkOption {
        type = types.nullOr cidr.rule;
        default = null;
        example = "203.0.113.0/24";
        description = "Network. A rule has this or {option}`name`.";
      };
      name = mkOption {
        type = types.nullOr dnsName;
        default = null;
        example = "*.example.net";
        description = "Name, or every name below one, as {option}`outboundAllowNames` has them.";
      };
      protocol = mkOption {
        type = types.nullOr (
          types.enum [
            "tcp"
            "udp"
            "icmp"
            "any"
          ]
        );
        default = null;
        example = "tcp";
        description = ''
          Protocol; null is `any` for a network, and `tcp` for a name. `any` with ports is TCP and UDP. `icmp` is ICMPv6 for IPv6, and
          has no ports.
        '';
      };
      ports = mkOption {
        type = types.listOf portRange;
        default = [ ];
        example = [
          443
          "8000-8100"
        ];
        description = "Ports and ranges of ports; none means all, and 443 for a name without {option}`protocol`.";
      };
      tls = mkOption {
        type = types.nullOr types.bool;
        default = null;
        example = false;
        description = ''
          Whether a connection by {option}`name` must open TLS, with a hello to a server that a rule with this lists; otherwise it is reset
          at once. So an address that a listed site shares with others, as behind a CDN, is not a way to those. null is true where the
          rule is for TCP 443 alone, and false otherwise. For TCP only.
        '';
      };
      private = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether answers for {option}`name` may bring private addresses, such as `10.0.0.9`. Without this, whoever runs the name's zone could
          have the agent reach this network's own machines. Loopback, link-local and this machine's own addresses no name may bring.
        '';
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

    errno = mkOption {
      type = types.enum [
        "EPERM"
        "ECONNREFUSED"
        "EHOSTUNREACH"
        "ENETUNREACH"
      ];
      default = "EPERM";
      example = "ECONNREFUSED";
      description = ''
        The error that a denied `connect`, `send` or `bind` gets. Some programs take `EPERM` for the permissions of a file; docs/refused.md has which one says what. Others take
        Linux 6.1: on an older kernel the daemon refuses the policy. Datagrams of connected sockets, and whatever else is judged as a packet, get `EPERM` in any case.
      '';
    };

    tellAgent = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether the agent is told of its policy: what it may reach, how a refusal looks, not to look for a way round it, and what to ask the user for. That is
        a file of some 300 tokens and the lists, with the command that says what was refused (`opencode-egress why`): `/etc/opencode-instructions/<name>/network.md`, which is the last of {option}`config.instructions`. It changes with the
        lists, without a restart, and is empty in `audit` mode. With {option}`configFile` that has to name it.
      '';
    };

    failFast = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether programs are told, by environment variables, not to try again what fails: nothing about a refusal passes, and npm waits for 70 seconds. That is for
        ${lib.concatMapStringsSep ", " (name: "`${name}`") (lib.attrNames (import ../units/fail-fast.nix { wgetrc = ""; }))}; what {option}`environment` or {option}`environmentFile` sets of
        these counts. They know no refusal from a failure, so a server on the list that fails for a moment is not asked again either.
      '';
    };

    ownLoopback = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether the instance may talk to itself over loopback, as test suites, language servers and debuggers do: whatever goes to a socket of its own
        passes, and it may bind 127.0.0.1, ::1 or a wildcard from port 1024 on, where no other instance lists the port. Nobody else reaches what listens
        there; {option}`listen.extraPorts` is for that. The neighbours' servers and the host's stay closed.
      '';
    };

    outboundAllowNames = mkOption {
      type = types.listOf dnsName;
      default = [ ];
      example = [
        "api.anthropic.com"
        "*.example.net"
      ];
      description = ''
        Names that the instance may reach, by TCP on port 443; {option}`outboundAllow` takes other ports. `*.example.net` is every name below `example.net`,
        at any depth, and not `example.net` itself. No resolver has to be listed: what the instance asks, of whatever resolver, is answered by one
        on this host, for the names that are listed and for no others.
      '';
    };

    presets = mkOption {
      type = types.listOf presetName;
      default = [ ];
      example = [
        "anthropic"
        "npm"
      ];
      description = ''
        Names that belong together, from a list that comes with opencode-egress: ${
          lib.concatMapStringsSep ", " (name: "`${name}`") (lib.attrNames presets)
        }. `opencode-egress presets` says what is in each.
      '';
    };

    outboundAllowCidrs = mkOption {
      type = types.listOf cidr.allowed;
      default = [ ];
      example = [
        "10.10.0.0/16"
        "2001:db8::/32"
      ];
      description = ''
        Networks that the instance may reach, by any protocol and port. Nothing is allowed by itself, others on loopback included. `0.0.0.0/0` and `::/0`
        are everything there is of a family. A list without names that is to resolve some has the resolver here, such as `127.0.0.53/32`; with
        names it must not, for questions would pass them by.
      '';
    };

    outboundDenyCidrs = mkOption {
      type = types.listOf cidr.denied;
      default = [ ];
      example = [ "10.10.9.0/24" ];
      description = "Networks that it may not reach, whatever else is allowed, names included.";
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
        {
          name = "github.com";
          ports = [
            22
            443
          ];
        }
      ];
      description = "Networks and names that it may reach by some protocols and ports.";
    };
  };
}
