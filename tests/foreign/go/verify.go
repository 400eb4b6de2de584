// Verify a log of the cooperative with Go's own transparency-log packages and nothing of ours.
//
// Usage: verify FOLDER [URL]. The folder holds what its owner trusts and keeps:
//
//	log.vkey            the log's verifier key
//	cosigners.vkey      one verifier key of a hospital a line
//	old-checkpoint      an earlier checkpoint
//	receipt.tlog-proof  a receipt (c2sp.org/tlog-proof)
//	receipt.leaf        the leaf it speaks of
//
// The log itself is fetched from the URL of a hub; without one it lies in the folder, too:
//
//	checkpoint          the newest signed checkpoint with its cosignatures
//	consistency         our proof between the two, one base64 hash a line
//	tile/...            the log's public files (c2sp.org/tlog-tiles)
package main

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const cosignatureV1 = 4

func main() {
	if len(os.Args) != 2 && len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: verify FOLDER [URL]")
		os.Exit(2)
	}
	published := source{folder: os.Args[1]}
	if len(os.Args) == 3 {
		published.url = strings.TrimSuffix(os.Args[2], "/")
	}
	report, err := verify(os.Args[1], published)
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAILED:", err)
		os.Exit(1)
	}
	fmt.Println(report)
}

// source is where the log is published: at a hub's URL, or as files in a folder.
type source struct{ folder, url string }

const bytesMax = 1 << 24

func (s source) read(path string) ([]byte, error) {
	if s.url == "" {
		return os.ReadFile(filepath.Join(s.folder, filepath.FromSlash(path)))
	}
	answer, err := http.Get(s.url + "/" + path)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", path, answer.Status)
	}
	return io.ReadAll(io.LimitReader(answer.Body, bytesMax))
}

// consistency is the log's own proof that it grew from one size to another.
func (s source) consistency(old, size int64) (tlog.TreeProof, error) {
	if s.url == "" {
		lines, err := readLines(filepath.Join(s.folder, "consistency"))
		if err != nil {
			return nil, err
		}
		return parseHashes(lines)
	}
	data, err := s.read(fmt.Sprintf("v1/log/consistency?old=%d&new=%d", old, size))
	if err != nil {
		return nil, err
	}
	var answer struct{ Hashes []string }
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, err
	}
	var proof tlog.TreeProof
	for _, text := range answer.Hashes {
		var hash tlog.Hash
		data, err := hex.DecodeString(text)
		if err != nil || len(data) != len(hash) {
			return nil, errors.New("consistency: not 32 bytes in hex")
		}
		copy(hash[:], data)
		proof = append(proof, hash)
	}
	return proof, nil
}

func verify(folder string, published source) (string, error) {
	verifiers, err := readVerifiers(folder)
	if err != nil {
		return "", err
	}
	text, err := published.read("checkpoint")
	if err != nil {
		return "", err
	}
	tree, cosigners, err := parseCheckpoint(text, verifiers)
	if err != nil {
		return "", err
	}
	text, err = os.ReadFile(filepath.Join(folder, "old-checkpoint"))
	if err != nil {
		return "", err
	}
	old, _, err := parseCheckpoint(text, verifiers)
	if err != nil {
		return "", err
	}
	reader := tlog.TileHashReader(tree, tiles{published})
	root, err := tlog.TreeHash(tree.N, reader)
	if err != nil {
		return "", err
	}
	if root != tree.Hash {
		return "", errors.New("the tiles do not hash to the checkpoint's root")
	}
	if err := checkEntries(published, tree, reader); err != nil {
		return "", err
	}
	if err := checkGrowth(published, old, tree, reader); err != nil {
		return "", err
	}
	if err := checkReceipt(folder, published, verifiers); err != nil {
		return "", err
	}
	return fmt.Sprintf("verified %d entries, cosigned by %d", tree.N, cosigners), nil
}

func readVerifiers(folder string) (note.Verifiers, error) {
	text, err := os.ReadFile(filepath.Join(folder, "log.vkey"))
	if err != nil {
		return nil, err
	}
	log, err := note.NewVerifier(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, err
	}
	known := []note.Verifier{log}
	lines, err := readLines(filepath.Join(folder, "cosigners.vkey"))
	if err != nil {
		return nil, err
	}
	for _, line := range lines {
		cosigner, err := newCosigner(line)
		if err != nil {
			return nil, err
		}
		known = append(known, cosigner)
	}
	return note.VerifierList(known...), nil
}

// cosigner verifies a timestamped Ed25519 cosignature (c2sp.org/tlog-cosignature).
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func newCosigner(vkey string) (*cosigner, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("malformed verifier key")
	}
	data, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(data) != 1+ed25519.PublicKeySize || data[0] != cosignatureV1 {
		return nil, errors.New("not a cosignature/v1 verifier key")
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), data...))
	hash := binary.BigEndian.Uint32(sum[:4])
	if fmt.Sprintf("%08x", hash) != parts[1] {
		return nil, errors.New("the verifier key's hash is wrong")
	}
	return &cosigner{parts[0], hash, data[1:]}, nil
}

func (c *cosigner) Name() string    { return c.name }
func (c *cosigner) KeyHash() uint32 { return c.hash }
func (c *cosigner) Verify(message, signature []byte) bool {
	if len(signature) != 8+ed25519.SignatureSize {
		return false
	}
	time := binary.BigEndian.Uint64(signature[:8])
	signed := fmt.Sprintf("cosignature/v1\ntime %d\n%s", time, message)
	return ed25519.Verify(c.key, []byte(signed), signature[8:])
}

func parseCheckpoint(text []byte, verifiers note.Verifiers) (tlog.Tree, int, error) {
	opened, err := note.Open(text, verifiers)
	if err != nil {
		return tlog.Tree{}, 0, err
	}
	if len(opened.UnverifiedSigs) != 0 {
		return tlog.Tree{}, 0, errors.New("a signature is of nobody we know")
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != opened.Sigs[0].Name {
		return tlog.Tree{}, 0, errors.New("not a checkpoint of three lines")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, 0, err
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, len(opened.Sigs) - 1, err
}

// tiles reads the log's public files. Go's paths name the height (8); C2SP's do not.
type tiles struct{ published source }

func (t tiles) Height() int                         { return 8 }
func (t tiles) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range wanted {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := t.published.read(path)
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func checkEntries(published source, tree tlog.Tree, reader tlog.HashReader) error {
	for start := int64(0); start < tree.N; start += 256 {
		width := tree.N - start
		if width > 256 {
			width = 256
		}
		tile := tlog.Tile{H: 8, L: -1, N: start / 256, W: int(width)}
		path := strings.Replace(tile.Path(), "tile/8/data/", "tile/entries/", 1)
		data, err := published.read(path)
		if err != nil {
			return err
		}
		for index := start; index < start+width; index++ {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				return errors.New("an entry tile ends too early")
			}
			length := int(binary.BigEndian.Uint16(data))
			leaf := data[2 : 2+length]
			data = data[2+length:]
			proof, err := tlog.ProveRecord(tree.N, index, reader)
			if err != nil {
				return err
			}
			err = tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(leaf))
			if err != nil {
				return fmt.Errorf("entry %d: %w", index, err)
			}
		}
		if len(data) != 0 {
			return errors.New("an entry tile holds more than its entries")
		}
	}
	return nil
}

func checkGrowth(published source, old, tree tlog.Tree, reader tlog.HashReader) error {
	theirs, err := tlog.ProveTree(tree.N, old.N, reader)
	if err != nil {
		return err
	}
	if err := tlog.CheckTree(theirs, tree.N, tree.Hash, old.N, old.Hash); err != nil {
		return err
	}
	ours, err := published.consistency(old.N, tree.N)
	if err != nil {
		return err
	}
	return tlog.CheckTree(ours, tree.N, tree.Hash, old.N, old.Hash)
}

func checkReceipt(folder string, published source, verifiers note.Verifiers) error {
	text, err := os.ReadFile(filepath.Join(folder, "receipt.tlog-proof"))
	if err != nil {
		return err
	}
	leaf, err := os.ReadFile(filepath.Join(folder, "receipt.leaf"))
	if err != nil {
		return err
	}
	index, err := checkProof(text, leaf, verifiers)
	if err != nil || published.url == "" {
		return err
	}
	// The same entry under the checkpoint that most hospitals have cosigned by now.
	text, err = published.read(fmt.Sprintf("v1/log/proof?index=%d", index))
	if err != nil {
		return err
	}
	again, err := checkProof(text, leaf, verifiers)
	if err == nil && again != index {
		return errors.New("the completed receipt is of another entry")
	}
	return err
}

func checkProof(text, leaf []byte, verifiers note.Verifiers) (int64, error) {
	head, checkpoint, found := bytes.Cut(text, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return 0, errors.New("not a tlog-proof")
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil {
		return 0, err
	}
	hashes, err := parseHashes(lines[2:])
	if err != nil {
		return 0, err
	}
	tree, _, err := parseCheckpoint(checkpoint, verifiers)
	if err != nil {
		return 0, err
	}
	proof := tlog.RecordProof(hashes)
	return index, tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(leaf))
}

func parseHashes(lines []string) ([]tlog.Hash, error) {
	var found []tlog.Hash
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return nil, err
		}
		found = append(found, hash)
	}
	return found, nil
}

func readLines(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var lines []string
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		if line := strings.TrimSpace(scanner.Text()); line != "" {
			lines = append(lines, line)
		}
	}
	return lines, scanner.Err()
}
