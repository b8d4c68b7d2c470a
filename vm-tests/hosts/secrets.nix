# Two servers, with secrets as sops-nix puts them on a host.
{
  imports = [ ../common.nix ];

  services.opencode = {
    defaults.networkIsolation.enable = true;
    instances = {
      keyed = {
        directory = "/srv/keyed";
        listen.port = 4101;
        environment = {
          # The module's own is "1".
          OPENCODE_DISABLE_AUTOUPDATE = "environment";
          # Nothing that systemd knows a meaning of.
          PROXY = "http://me%40example.org:50%25@proxy.example";
          FROM_FILE = "environment";
          FROM_LAST = "environment";
        };
        environmentFile = "/run/secrets/keyed";
        environmentFiles = [ "/run/secrets/keyed-more" ];
        config.username = "{env:API_KEY}";
      };
      other = {
        directory = "/srv/other";
        listen.port = 4102;
      };
    };
  };
}
