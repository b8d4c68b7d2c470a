# One server that is given a directory, a socket and a file outside of the store.
{
  imports = [ ../common.nix ];

  services.opencode = {
    defaults.networkIsolation.enable = true;
    instances = {
      a = {
        directory = "/srv/a";
        listen.port = 4101;
        sandbox = {
          readOnlyPaths = [ "/srv/reference/ref" ];
          unixSockets.allow = [ "/run/queue/in" ];
        };
      };
      b = {
        directory = "/srv/b";
        listen.port = 4102;
      };
    };
  };
}
