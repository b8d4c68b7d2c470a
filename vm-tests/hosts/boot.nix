# An instance whose setup and whose server, as the first thing they do, send datagrams and connect to where the list does not let
# them. When a machine begins to boot it may have no network, so they go on until a datagram that is on the list has been sent.
{ lib, pkgs, ... }:
let
  send = port: ''
    leave() {
      echo x > /dev/udp/192.0.2.20/${toString port} || true
      echo x > /dev/tcp/192.0.2.20/${toString port} || true
    }
    leave
    tries=0
    until echo x > /dev/udp/192.0.2.10/${toString port}; do
      leave
      tries=$((tries + 1))
      [ $tries -lt 600 ]
      sleep 0.1
    done
    leave
  '';
in
{
  imports = [ ../common.nix ];

  # Before the units, as on a machine that has run before.
  systemd.tmpfiles.rules = [ "d /srv/boot 0755 opencode-boot opencode-boot -" ];

  services.opencode = {
    instances.boot = {
      directory = "/srv/boot";
      preInitScript = "PATH=${lib.makeBinPath [ pkgs.coreutils ]}\n${send 9001}";
      sandbox.extraConfig.ExecStart = pkgs.writeShellScript "opencode-boot-server" ''
        set -eu
        PATH=${lib.makeBinPath [ pkgs.coreutils ]}
        ${send 9002}
        exec ${lib.getExe' pkgs.opencode "opencode"} serve --hostname 127.0.0.1 --port 4096
      '';
      networkIsolation = {
        enable = true;
        outboundAllowCidrs = [ "192.0.2.10/32" ];
      };
    };
  };
}
