# The daemon that holds instances to their policies.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  inherit (import ../types.nix { inherit lib; }) metricsAddress;
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

    metrics = mkOption {
      type = types.nullOr metricsAddress;
      default = null;
      example = "127.0.0.1:9642";
      description = "Where the daemon serves metrics for Prometheus: an address and port on loopback, or the path of a Unix socket. Its directory has to be there when the daemon starts; without it there are no metrics, and the journal says so. Whoever reaches it sees what was denied to each instance.";
    };
  };
}
