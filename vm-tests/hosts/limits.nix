# Two servers with little of everything.
{
  imports = [ ../common.nix ];

  services.opencode = {
    defaults = {
      networkIsolation.enable = true;
      resources = {
        memoryMax = "1G";
        tasksMax = 150;
        openFilesMax = 2048;
        sockets = 64;
        sharedMemoryMax = "16M";
        terminalsMax = 8;
      };
    };
    instances = {
      a = {
        directory = "/srv/a";
        listen.port = 4101;
      };
      b = {
        directory = "/srv/b";
        listen.port = 4102;
      };
    };
  };
}
