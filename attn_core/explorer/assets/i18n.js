// Every text of the page, in English and in Chinese (terms as in 《动手学深度学习》).

export const TEXTS = {
  title: ["Attention explorer", "注意力探索器"],
  subtitle: ["Choose a score, a normaliser and a support; every number is computed here, in front of you.",
    "选择评分函数、归一化和支撑集；每个数字都在此页当场算出。"],
  subtitleWeights: ["Weights of a model: one click, and the same pair is marked in every picture.",
    "模型的注意力权重：点一下，同一对在每幅图中都会标出。"],
  skip: ["Skip to the pictures", "跳到图"],
  language: ["Language", "语言"], theme: ["Appearance", "外观"],
  auto: ["System", "跟随系统"], light: ["Light", "浅色"], dark: ["Dark", "深色"],
  examples: ["Example", "示例"],
  sentence: ["Sentence", "句子"], decoder: ["Decoder", "解码器"], graph: ["Graph", "图"],
  dictionary: ["GAT against GATv2", "GAT 与 GATv2"],
  aboutSentence: ["A sentence reads itself. Each word is a point with two features: drag one.",
    "自注意力：句子读它自己。每个词是有两个特征的一点：拖动它试试。"],
  aboutDecoder: ["A decoder writes word by word; at each step it looks back at the source. Press play.",
    "解码器逐词书写，每一步都回看源句。请按播放。"],
  aboutGraph: ["Each node attends to its neighbours and to itself.", "每个节点注意它的邻居和它自己。"],
  aboutDictionary: ["Each query should find the key at the same point. GAT ranks the keys alike for all queries, so it cannot; GATv2 can.",
    "每个查询应找到同一点上的键。GAT 对所有查询给出同样的键排名，所以做不到；GATv2 可以。"],
  settings: ["Settings", "设置"],
  ownWords: ["Your own words", "自己的句子"],
  ownWordsHint: ["at most 24; a word’s point follows from its letters", "最多 24 个；词的位置由字符决定"],
  score: ["Score", "评分函数"], normalizer: ["Normaliser", "归一化"], support: ["Support", "支撑集"],
  dot: ["dot product", "点积"], scaled_dot: ["scaled dot product", "缩放点积"], cosine: ["cosine", "余弦"],
  general: ["general (Luong)", "一般式 (Luong)"], additive: ["additive (Bahdanau)", "加性 (Bahdanau)"],
  gat: ["GAT", "GAT"], gatv2: ["GATv2", "GATv2"],
  softmax: ["softmax", "softmax"], sparsemax: ["sparsemax", "sparsemax"], entmax15: ["1.5-entmax", "1.5-entmax"],
  entmax: ["α-entmax", "α-entmax"], hard: ["hard (argmax)", "硬注意力 (argmax)"],
  all: ["all pairs", "所有对"], causal: ["causal", "因果"], window: ["window", "窗口"], edges: ["edges of a graph", "图的边"],
  temperature: ["Temperature τ", "温度 τ"], alpha: ["α", "α"], radius: ["Radius", "半径"],
  heads: ["Heads", "头数"], head: ["Head", "头"], headN: ["head {n}", "头 {n}"], mean: ["mean of heads", "各头平均"],
  layer: ["Layer", "层"],
  mask: ["Mask", "掩蔽"], maskHint: ["switch keys off", "关掉某些键"],
  maskKey: ["key {key} can be seen", "键 {key} 可见"],
  parameters: ["Parameters of {head}", "{head}的参数"],
  reset: ["Start again", "重新开始"],
  scale: ["Colours from 0 to", "颜色从 0 到"], scaleOne: ["1", "1"], scaleLargest: ["the largest weight", "最大权重"],
  digits: ["Digits", "位数"], allDigits: ["all", "全部"],
  query: ["query", "查询"], key: ["key", "键"], queries: ["Queries", "查询"], keys: ["Keys", "键"],
  matrix: ["Matrix", "矩阵"], matrixHint: ["a row for each query, a column for each key", "每行一个查询，每列一个键"],
  arcs: ["Arcs", "弧线"], arcsHint: ["left: to what comes before; right: to what comes after", "左边：指向前面；右边：指向后面"],
  arcsHintCross: ["from the keys (left) to the queries (right)", "从键（左）到查询（右）"],
  network: ["Graph", "图"], networkHint: ["an arrow from each key to who attends to it; a ring: to itself", "箭头从键指向注意它的查询；圆环：对自己的注意"],
  plane: ["Features", "特征"], planeHint: ["drag a point, or move it with the arrow keys", "拖动一点，或用方向键移动"],
  steps: ["Step by step", "逐步"], step: ["Step {n} of {total}", "第 {n} 步，共 {total} 步"],
  previous: ["Previous query", "上一个查询"], next: ["Next query", "下一个查询"],
  play: ["Play", "播放"], pause: ["Pause", "暂停"], written: ["Written so far", "已写出"], reads: ["reads", "正在读"],
  arithmetic: ["Arithmetic", "计算过程"],
  arithmeticOf: ["What “{query}” pays to “{key}”", "“{query}”对“{key}”的注意力"],
  noPair: ["This pair does not exist: the support or the mask leaves it out, so its score is −∞ and its weight 0.",
    "此对不存在：支撑集或掩蔽排除了它，所以分数是 −∞，权重是 0。"],
  hidePair: ["Mask this pair", "掩蔽此对"], showPair: ["Unmask this pair", "取消掩蔽"],
  toFeatures: ["Features to query and key", "从特征到查询和键"],
  sum: ["sum", "和"], term: ["term", "项"], feature: ["feature", "特征"], unit: ["unit", "单元"],
  rowTitle: ["The row: from scores to weights", "这一行：从分数到权重"],
  scoreOfPair: ["The score", "分数"],
  largestSubtracted: ["largest, subtracted", "减去的最大值"],
  quotient: ["The quotient", "商"],
  thresholdTitle: ["The threshold", "阈值"],
  running: ["running sum", "累加和"], inside: ["in the support", "在支撑内"], yes: ["yes", "是"], no: ["no", "否"],
  result: ["What comes out", "输出"],
  output: ["weights times the values; here a value is the token’s own point", "权重乘以值；这里值就是词元自己的点"],
  weight: ["weight", "权重"], largestWins: ["The largest score takes all; of equals the first.", "最大的分数得到全部；相等时取第一个。"],
  rowOf: ["The row of “{query}”", "“{query}”这一行"],
  meanOfHeads: ["The mean of the heads", "各头的平均"],
  showHead: ["show {head}", "显示{head}"],
  rowSum: ["sum of the row", "行的和"], rank: ["rank", "名次"], rankOf: ["{n} of {total}", "第 {n}，共 {total}"],
  logRatio: ["against the strongest key", "与最强的键相比"],
  logRatioHint: ["ln of the quotient of the two weights: the difference of their scores, if softmax made them",
    "两个权重之商的 ln：若由 softmax 得到，就是分数之差"],
  table: ["All weights as a table", "所有权重的表格"], tableOf: ["Weights, {head}", "权重，{head}"],
  tableTooLarge: ["The table shows the row of the chosen query.", "表格只显示所选查询的那一行。"],
  python: ["The same in Python", "用 Python 计算"], pythonHint: ["prints the same weights, to the last digits", "得到同样的权重，直到末位"],
  copy: ["Copy", "复制"], copied: ["Copied", "已复制"],
  compare: ["GAT against GATv2", "GAT 与 GATv2 之比较"],
  compareHint: ["Each line is a query; the keys stand in GAT’s order. Lines that fall alike: one ranking for all.",
    "每条线是一个查询；键按 GAT 的顺序排列。所有的线同样下降：大家排名相同。"],
  direction: ["Direction that GAT’s b looks in", "GAT 的 b 所看的方向"],
  rankings: ["rankings of the keys", "键的不同排名数"], found: ["queries that find their key", "找到自己键的查询数"],
  ofQueries: ["{n} of {total}", "{n} / {total}"],
  announce: ["query {query}, key {key}, weight {weight}, rank {rank} of {total}", "查询 {query}，键 {key}，权重 {weight}，名次 {rank} / {total}"],
  announceNone: ["query {query}, key {key}: no pair", "查询 {query}，键 {key}：不存在此对"],
  help: ["Arrow keys walk from weight to weight, Home and End to the ends of a row, Page Up and Page Down from query to query; Enter opens the arithmetic.",
    "方向键在权重间移动，Home 和 End 到行的两端，Page Up 和 Page Down 切换查询；Enter 打开计算过程。"],
  pointLabel: ["{name}: {x}, {y}; arrow keys move it", "{name}：{x}，{y}；用方向键移动"],
  footer: ["One file: nothing is loaded, nothing leaves this page.", "单个文件：不加载任何东西，也不向外发送。"],
};

export const LANGUAGES = { en: "English", zh: "中文" };

let chosen = "en";

export function speak(language) {
  chosen = language in LANGUAGES ? language : "en";
  document.documentElement.lang = chosen === "zh" ? "zh-Hans" : "en";
}

export const language = () => chosen;

/** The text of a name, in which {words} are replaced. */
export function say(name, words = {}) {
  const text = TEXTS[name][chosen === "zh" ? 1 : 0];
  return text.replace(/\{(\w+)\}/g, (_, word) => String(words[word]));
}

let places = 4;

export const setDigits = (count) => (places = count);

/** A number as it is shown: with so many digits behind the point, or with all there are. */
export function show(x) {
  if (x === -Infinity) return "−∞";
  if (!Number.isFinite(x)) return String(x);
  if (places === "all") return String(x).replace("-", "−");
  const text = x.toFixed(places);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}
