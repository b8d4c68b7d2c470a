# How a log level may be written, and what the server is told of it.
{ lib, host }:
let
  command = instance: (host.one instance).systemd.services.opencode-a.serviceConfig.ExecStart;
  base = "/nix/store/opencode/bin/opencode serve --hostname 127.0.0.1 --port 4096 --print-logs";
in
{
  "in lower case" = {
    got = map (logLevel: command { inherit logLevel; }) [
      "debug"
      "error"
    ];
    expected = [
      "${base} --log-level DEBUG"
      "${base} --log-level ERROR"
    ];
  };
  "null leaves it to the server" = {
    got = command { logLevel = null; };
    expected = base;
  };
  "in the defaults" = {
    got =
      map
        (
          logLevel:
          (host.config [
            {
              services.opencode.defaults = { inherit logLevel; };
              services.opencode.instances.a.directory = "/srv/a";
            }
          ]).systemd.services.opencode-a.serviceConfig.ExecStart
        )
        [
          "warn"
          null
        ];
    expected = [
      "${base} --log-level WARN"
      base
    ];
  };
}
