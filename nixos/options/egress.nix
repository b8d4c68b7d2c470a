# The daemon that holds instances to their policies.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ../types.nix { inherit lib; }) metricsAddress upstream;
  count = types.ints.between 1 1000000;
in
{
  options.services.opencode.egress = {
    package = mkOption {
      type = types.package;
      default =
        pkgs.opencode-egress
          or (throw "services.opencode.egress.package: nixpkgs has no `opencode-egress`; add the flake's overlay to `nixpkgs.overlays`, or set the option");
      defaultText = lib.literalExpression "pkgs.opencode-egress";
      description = "opencode-egress. It runs when an instance has {option}`networkIsolation.enable`, and checks the policy at build time.";
    };

    besideFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether {option}`networking.firewall` stays on beside instances with {option}`networkIsolation`. A packet has to pass both then: what the firewall lets in
        does not reach a server that its policy closes, and what a policy opens the firewall opens as well, by {option}`openFirewall`. Without this
        a host with such instances has to turn the firewall off, so that there is one place that says what is open.
      '';
    };

    log = {
      intervalSecs = mkOption {
        type = count;
        default = 10;
        description = "Denials of one destination within this many seconds are one line in the journal.";
      };
      burst = mkOption {
        type = count;
        default = 20;
        description = "Lines that an instance may log at once. More are counted, and told of together.";
      };
      perSec = mkOption {
        type = count;
        default = 5;
        description = "Lines a second that it may log after that.";
      };
    };

    resolver.upstream = mkOption {
      type = types.listOf upstream;
      default = [ ];
      example = [
        "192.0.2.53"
        "[2001:db8::53]:5353"
      ];
      description = ''
        Resolvers that the listed names of instances are asked of, in this order, by UDP and TCP, on port 53 unless another is given. None means
        those of this host's `/etc/resolv.conf`. One on loopback may be among them: it is this host that asks.
      '';
    };

    markBit = mkOption {
      type = types.ints.between 0 31;
      default = 25;
      description = ''
        Bit of the packet mark by which the nftables table knows flows to learned addresses; 25 is `0x02000000`. It must mean nothing else on this host: what
        sets it on packets of an instance's user opens the table to them, and a routing rule for it would route named flows another way. Evaluation
        compares it with the marks of WireGuard interfaces, of {option}`systemd.network`, Tailscale, Mullvad and Kubernetes; those in rules of your own
        ({option}`networking.nftables`, `ip rule`) it cannot know. The default is in no mark of these. Calico and Cilium take every high bit: beside
        them choose one that they are configured to leave.
      '';
    };

    loopbackMarkBit = mkOption {
      type = types.ints.between 0 31;
      default = 28;
      description = ''
        Bit of the packet mark by which the nftables table knows what an instance says to itself over loopback; 28 is `0x10000000`. What is said of
        {option}`services.opencode.egress.markBit` is true of it, too, except that it opens nothing but loopback.
      '';
    };

    metrics = mkOption {
      type = types.nullOr metricsAddress;
      default = null;
      example = "127.0.0.1:9642";
      description = "Where the daemon serves metrics for Prometheus: an address and port on loopback, or the path of a Unix socket. Its directory has to be there when the daemon starts; without it there are no metrics, and the journal says so. Whoever reaches it sees the names of instances and units, how much was denied to each, and for which reasons, but no destination.";
    };
  };
}
