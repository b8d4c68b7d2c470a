# opencode-<name>.service
{ lib }:
{
  name,
  instance,
  common,
  ...
}:
let
  inherit (lib)
    optional
    optionals
    ;
  exec = import ./exec.nix { inherit lib; };
  kept = import ./kept-settings.nix;
  isolated = instance.networkIsolation.enable;
  setup = "opencode-${name}-setup.service";

  command = [
    (lib.getExe' instance.package "opencode")
    "serve"
    "--hostname"
    instance.listen.address
    "--port"
    (toString instance.listen.port)
    "--print-logs"
  ]
  ++ optionals (instance.logLevel != null) [
    "--log-level"
    instance.logLevel
  ]
  ++ map (origin: "--cors=${origin}") instance.cors
  ++ optional instance.mdns "--mdns"
  ++ optionals (instance.mdnsDomain != null) [
    "--mdns-domain"
    instance.mdnsDomain
  ]
  ++ optional instance.pure "--pure"
  ++ instance.extraArgs;

  # The operator's last word, but for what would lead round the policy; an assertion tells of it.
  given = removeAttrs instance.sandbox.extraConfig (optionals isolated kept);
  # A filter of one's own does not bring back what makes sockets past RestrictAddressFamilies=. What comes last is taken away from the rest.
  extra =
    given
    // lib.optionalAttrs (isolated && given ? SystemCallFilter) {
      SystemCallFilter = lib.toList given.SystemCallFilter ++ [ "~@aio" ];
    };
in
{
  description = "opencode server, instance ${name}";
  wantedBy = [ "multi-user.target" ];
  # Not Requires= for the daemon, which would restart the server whenever the daemon restarts. `attach` fails without it.
  wants = optional isolated "opencode-egress.service";
  requires = [ setup ];
  after = [
    "network.target"
    setup
  ]
  ++ optional isolated "opencode-egress.service";

  inherit (common) environment path unitConfig;

  serviceConfig =
    common.serviceConfig
    // {
      Type = "exec";
      ExecStart = exec command;
      # When the server has ended, what the agent has started ends at once, whether it listens to SIGTERM or not.
      KillMode = "mixed";
      Restart = "always";
      RestartSec = 5;
      # When something that the agent started takes too much memory, that goes, and not the server.
      OOMPolicy = "continue";
    }
    // extra;
}
