// Asks for a page as Java programs do; without TLS, whose authorities Java keeps in a form of its own.
public class Get {
    public static void main(String[] words) throws Exception {
        new java.net.URL("http://" + words[0] + "/").openStream().readAllBytes();
    }
}
