# One server without isolation.
{
  imports = [ ../common.nix ];

  services.opencode = {
    instances.a = {
      directory = "/srv/a";
      listen.port = 4101;
    };
  };
}
