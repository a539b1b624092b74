"""Small networks in which it is easy to explain the wrong tensor; images are 64 x 64, tokens are places of 8 x 8."""

import torch
from torch import nn

F = nn.functional
SIZE, PATCH, WIDTH = 64, 8, 32
PLACES = [(row, column) for row in (0, 2, 5, 7) for column in (0, 2, 5, 7)]


def scenes(places=PLACES):
    """One image of noise, with a bright square at another place each time."""
    images = 0.1 * torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    images = images.repeat(len(places), 1, 1, 1)
    for image, (row, column) in zip(images, places, strict=True):
        image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 2.0
    return images


def misplaced(heatmaps, places=PLACES):
    """Distance of what the square changes in a map from the square, worst quarter; side of the image = 1."""
    change = (heatmaps - heatmaps.median(0).values).abs()
    change = change * (change >= 0.5 * change.amax((1, 2), keepdim=True))
    height, width = change.shape[1:]
    total = change.sum((1, 2)).clamp_min(1e-20)
    row = (change.sum(2) * (torch.arange(height) + 0.5) / height).sum(1) / total
    column = (change.sum(1) * (torch.arange(width) + 0.5) / width).sum(1) / total
    centres = (torch.tensor(places) + 0.5) * PATCH / SIZE
    return float((torch.stack([row, column], 1) - centres).norm(dim=1).sort().values[-len(places) // 4 :].mean())


def mix(width=WIDTH, batch_first=True):
    return nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=batch_first, norm_first=True)


class Tokens(nn.Module):
    """A vision transformer without a class token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.place = nn.Parameter(0.02 * torch.randn(64, WIDTH))
        self.extra = nn.Parameter(torch.randn(4, WIDTH))
        self.first, self.last, self.norm, self.head = mix(), mix(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def tokens(self, x):
        return self.embed(x).flatten(2).transpose(1, 2) + self.place

    def forward(self, x):
        return self.read(self.tokens(x))

    def read(self, tokens):
        return self.head(self.norm(self.last(self.first(tokens))).mean(1))


class Queries(Tokens):
    """16 learned queries read the tokens."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(16, WIDTH))
        self.reader = nn.TransformerDecoderLayer(WIDTH, 2, 64, 0.0, batch_first=True)

    def read(self, tokens):
        return self.head(self.norm(self.reader(self.queries.expand(len(tokens), -1, -1), self.first(tokens))).mean(1))


class Kept(Tokens):
    """The 49 tokens of 64 with the largest norm go on: as many as a grid of 7 x 7."""

    def read(self, tokens):
        tokens = self.first(tokens)
        kept = tokens.norm(dim=-1).topk(49, 1).indices
        return self.head(self.norm(self.last(tokens.gather(1, kept[..., None].expand(-1, -1, WIDTH)))).mean(1))


class Shuffled(Tokens):
    """The tokens in an order of their own."""

    def read(self, tokens):
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        return super().read(tokens[:, order])


class Columns(nn.Module):
    """The height is averaged away, and 16 columns go into a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 5, 4, 2), nn.ReLU())
        self.reader, self.head = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.head(self.reader(self.stem(x).mean(2).transpose(1, 2))[0].mean(1))


class ChannelsAsTokens(nn.Module):
    """64 channels are the tokens, 256 places their features."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix = nn.Sequential(nn.Conv2d(3, 64, 5, 4, 2), nn.ReLU()), mix(256)
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        return self.head(self.mix(self.stem(x).flatten(2)).mean(2))


class RegistersBehind(Tokens):
    def read(self, tokens):
        tokens = torch.cat([tokens, self.extra.expand(len(tokens), -1, -1)], 1)
        return self.head(self.norm(self.last(self.first(tokens)))[:, :-4].mean(1))


class RegistersBeforeAndBehind(Tokens):
    def read(self, tokens):
        extra = self.extra.expand(len(tokens), -1, -1)
        return super().read(torch.cat([extra[:, :1], tokens, extra[:, 1:]], 1))


class ClassInTheMiddle(Tokens):
    def read(self, tokens):
        return super().read(torch.cat([tokens[:, :32], self.extra[:1].expand(len(tokens), -1, -1), tokens[:, 32:]], 1))


class TokensFirst(Tokens):
    """Tokens `(L, N, D)`."""

    def __init__(self):
        super().__init__()
        self.first, self.last = mix(batch_first=False), mix(batch_first=False)

    def read(self, tokens):
        return self.head(self.norm(self.last(self.first(tokens.transpose(0, 1)))).mean(0))


class Turned(nn.Module):
    """A patch embedding, normalised channels last, after `see` and before `turn`."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 8, 8), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1), nn.ReLU())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)

    def see(self, x):
        return x

    def turn(self, features):
        return features

    def forward(self, x):
        return self.head(self.norm(self.turn(self.stem(self.see(x)).permute(0, 2, 3, 1))).mean((1, 2)))


class WidthBeforeHeight(Turned):
    def turn(self, features):
        return features.transpose(1, 2)


class Mirrored(Turned):
    def see(self, x):
        return x.flip(-1)


class UpsideDown(Turned):
    def see(self, x):
        return x.flip(-2)


class QuarterTurn(Turned):
    def see(self, x):
        return x.rot90(1, (2, 3))


class MiddleOnly(Turned):
    """The middle of the image, enlarged."""

    def see(self, x):
        return F.interpolate(x[..., 16:48, 16:48], scale_factor=2)


class QuartersSwapped(Turned):
    def see(self, x):
        return x.roll((32, 32), (2, 3))


def colour(which, stride=4):
    """Brightness of one colour, on a grid."""
    conv = nn.Conv2d(3, 4, stride, stride, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[:, which] = 1 / stride**2
    return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False), nn.ReLU())


class Members(nn.Module):
    """An ensemble of three, each of which sees one colour."""

    def __init__(self):
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(colour(which), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)) for which in range(3)
        )

    def forward(self, x):
        return torch.stack([member(x) for member in self.members]).mean(0)


class Joined(nn.Module):
    """Two towers whose pooled features are put side by side."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = colour(0), colour(1), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.cat([self.left(x).mean((2, 3)), self.right(x).mean((2, 3))], 1))


class CoarseAndFine(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine, self.coarse, self.a, self.b = colour(0), colour(1, 8), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.a(self.fine(x).mean((2, 3))) + self.b(self.coarse(x).mean((2, 3)))


class JoinedMaps(nn.Module):
    """Two towers whose maps are put side by side before pooling: one map holds all."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = colour(0), colour(1), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.cat([self.left(x), self.right(x)], 1).mean((2, 3)))


class Folding(nn.Module):
    """Parts of an image go through the body as images of their own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(16, 2)


class TwoCrops(Folding):
    def forward(self, x):
        features = self.body(torch.cat([x[..., :40], x[..., 24:]])).mean((2, 3))
        return self.head(features.view(2, len(x), 16).mean(0))


class FourTiles(Folding):
    def forward(self, x):
        tiles = x.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32)
        return self.head(self.body(tiles).mean((2, 3)).view(len(x), 4, 16).mean(1))


class ChannelsAsFrames(Folding):
    def forward(self, x):
        frames = x.reshape(-1, 1, 64, 64).expand(-1, 3, -1, -1)
        return self.head(self.body(frames).mean((2, 3)).view(len(x), 3, 16).mean(1))


class Pair(nn.Module):
    """Hands on pixels that it has read itself, beside what it made of them."""

    def __init__(self, width=16):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, pixels, tokens):
        pixels = self.inner(pixels).relu()
        return pixels, tokens + self.outer(pixels)


class PixelsAndTokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b, self.head = nn.Conv2d(3, 16, 8, 8), Pair(), Pair(), nn.Linear(16, 2)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.b(*self.a(tokens, tokens))[1].mean(1))


class KeepsMap(nn.Module):
    """Reads the map itself, pooled, and hands it on for a decoder that is not used."""

    def __init__(self):
        super().__init__()
        self.conv, self.reader = nn.Conv2d(16, 16, 3, 1, 1), nn.Linear(16, 16)

    def forward(self, x):
        x = self.conv(x).relu()
        return x, self.reader(x.mean((2, 3)))


class MapAndSummary(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.last, self.head = KeepsMap(), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.last(self.stem(x))[1])


class Pooled(nn.Module):
    """A single convolution, and what is made of each of its channels."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.head, self.pool = nn.Conv2d(3, 24, 7), nn.Linear(24, 5), pool

    def forward(self, x):
        return self.head(self.pool(self.conv(x)))


class Styled(nn.Module):
    """One net, written in several ways."""

    def __init__(self, style):
        super().__init__()
        self.style = style
        self.c1, self.c2, self.norm = nn.Conv2d(3, 16, 5, 4, 2), nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.pause, self.act, self.head = nn.Identity(), nn.ReLU(inplace="in place" in style), nn.Linear(16, 2)

    def forward(self, x):
        x = self.c2(F.relu(self.c1(x)))
        norm = self.norm
        ways = {
            "module": lambda: self.act(self.pause(norm(x))),
            "in place": lambda: self.act(norm(x)),
            "in place behind an Identity": lambda: self.act(
                self.pause(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
            ),
            "function": lambda: F.relu(norm(x)),
            "function in place": lambda: F.relu_(norm(x)),
            "method": lambda: norm(x).clamp(min=0),
            "operator": lambda: norm(x) * (norm(x) > 0),
            "maximum": lambda: torch.maximum(norm(x), torch.zeros(())),
        }
        return self.head(ways[self.style]().mean((2, 3)))
