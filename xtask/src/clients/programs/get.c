/* Asks a name for its addresses as C programs do, and sends a request to the first that takes a connection. */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *first, *next;
	if (count != 2)
		return 2;
	int error = getaddrinfo(words[1], "80", &hints, &first);
	if (error) {
		fprintf(stderr, "getaddrinfo: %s\n", gai_strerror(error));
		return 1;
	}
	for (next = first; next; next = next->ai_next) {
		int peer = socket(next->ai_family, next->ai_socktype, next->ai_protocol);
		if (peer >= 0 && connect(peer, next->ai_addr, next->ai_addrlen) == 0) {
			char answer[512];
			dprintf(peer, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", words[1]);
			return read(peer, answer, sizeof answer) <= 0;
		}
		close(peer);
	}
	perror("connect");
	return 1;
}
